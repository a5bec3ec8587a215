"""``simdist run``: carry out one scenario and write its run folder."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simdist.assembly import build_job, build_pricer, build_task
from simdist.communication.ledger import Ledger
from simdist.errors import InputError, RunError, SimdistError
from simdist.execution.engine import peak_rss_bytes
from simdist.execution.memory import is_out_of_memory, wanted, what_helps
from simdist.results.disk import is_full
from simdist.results.folder import claim_folder, occupied
from simdist.results.perfetto import Trace
from simdist.results.progress import Progress, print_summary
from simdist.results.recorder import SPLIT, Recorder, mean_times, params_sha256

if TYPE_CHECKING:
    import torch

    from simdist.checkpointing import Saver
    from simdist.execution.pricing import StepPricer
    from simdist.scenario import Scenario
    from simdist.schedules import Job


#: called with a run folder when something in it is complete
Publish = Callable[[Path], None]


class Session:
    """One run under way: what has been recorded, and how it is summed up.

    Attributes:
        pricer: says what steps cost, and which plan carries out which collective.
        ledger, trace: filled by whoever drives the workers.
        extra: further entries of ``summary.json``.
        saver: writes checkpoints, where the run has any.
        publish: called when something in the run folder is complete: a checkpoint, or all of it.
    """

    def __init__(
        self, scenario: Scenario, job: Job, pricer: StepPricer, recorder: Recorder, progress: Progress
    ) -> None:
        self.scenario = scenario
        self.job = job
        self.pricer = pricer
        self.recorder = recorder
        self.progress = progress
        self.extra: dict[str, Any] = {}
        self.saver: Saver | None = None
        self.publish: Callable[[], None] = lambda: None
        self._began = time.monotonic()
        self.clear()

    def clear(self) -> None:
        """Forget everything recorded: the run starts anew, or again from a checkpoint."""
        self.recorder.refill([], [])
        self.ledger = Ledger(self.scenario.mesh.shape, self.pricer.plans)
        self.trace = Trace(self.scenario.workers)
        self._sent = 0

    def refill(self, steps: list[dict[str, Any]], diagnostics: list[dict[str, Any]]) -> None:
        """Take over the rows of a checkpoint; wall time goes on from theirs where more has not passed already."""
        self.recorder.refill(steps, diagnostics)
        self._sent = steps[-1]["sent_bytes_total"]
        self._began = min(self._began, time.monotonic() - steps[-1]["wall_seconds"])
        self.progress.show(steps[-1])

    @property
    def wall_seconds(self) -> float:
        """Wall time since the run began."""
        return time.monotonic() - self._began

    def tell(self, news: str) -> None:
        """Show a line of news on stderr."""
        self.progress.tell(news)

    def add_row(self, step_bytes: int, row: dict[str, Any]) -> None:
        """Note one row of ``steps.parquet`` and stop the run if the loss is no longer a number.

        Raises:
            RunError: naming step and optimizer.
        """
        self._sent += step_bytes
        row = {
            **row,
            "sent_bytes_total": self._sent,
            "sent_bytes_per_worker": step_bytes / self.scenario.workers,
            "wall_seconds": self.wall_seconds,
        }
        self.recorder.step(row)
        self.progress.show(row)
        for kind in ("train_loss", "val_loss"):
            loss = row.get(kind)
            if loss is not None and not math.isfinite(loss):
                raise RunError(
                    f"{kind} is {loss} at step {row['step']} with optimizer {self.scenario.optimizer.name!r} "
                    f"(lr {self.scenario.optimizer.lr:g}); try a smaller optimizer.lr or a longer lr_schedule.warmup"
                )

    def save(self, status: str, params: dict[str, torch.Tensor] | None, peak_rss: int) -> dict[str, Any]:
        """Write everything recorded so far, the summary last: its presence says that the folder is complete."""
        self.recorder.write_tables(self.ledger)
        self.trace.write(self.recorder.folder / "trace.json")
        rows = self.recorder.steps
        measured = [row["val_loss"] for row in rows if row["val_loss"] is not None]
        summary = {
            "status": status,
            "name": self.scenario.name,
            "engine": self.scenario.engine.name,
            "workers": self.scenario.workers,
            "steps": rows[-1]["step"] if rows else 0,
            "final_train_loss": _number(rows[-1]["train_loss"]) if rows else None,
            "final_val_loss": _number(measured[-1]) if measured else None,
            "loss_unit": self.scenario.workload.loss_unit,
            "simulated_seconds": rows[-1]["simulated_seconds"] if rows else 0.0,
            **mean_times({name: [row[name] for row in rows] for name in SPLIT}),
            "wall_seconds": self.wall_seconds,
            "sent_bytes_total": self._sent,
            "sent_bytes_per_worker_per_step": self._sent / self.scenario.workers / len(rows) if rows else 0.0,
            "params_sha256": params_sha256(params) if params is not None else None,
            "ledger_sha256": self.ledger.sha256(),
            "peak_rss_bytes": peak_rss,
            **self.extra,
        }
        self.recorder.write_summary(summary)
        self.publish()
        return summary


def _number(value: float | None) -> float | None:
    """Return a loss as JSON can hold it: null where it is not finite."""
    return value if value is not None and math.isfinite(value) else None


def run(
    scenario: Scenario,
    out: Path | None = None,
    progress: bool = True,
    ray_address: str | None = None,
    publish: Publish = lambda folder: None,
) -> Path:
    """Run a scenario and return its run folder.

    Args:
        out: the folder to make; default ``runs/<name>``, with a number where that exists.
        progress: show a progress bar and a closing table.
        ray_address: of a running Ray cluster, for engine ``ray``.
        publish: called with the run folder after each checkpoint and at the end, also of a run that failed.

    Raises:
        InputError: before anything has been run.
        RunError: when the run failed; what was recorded so far is in the folder.
    """
    task = build_task(scenario)
    job = build_job(scenario, task)
    pricer = build_pricer(scenario)  # a network that does not fit is refused before a folder is made
    folder = claim_folder(out if out is not None else _free_folder(scenario.name), "run")
    recorder = Recorder(folder)
    recorder.begin(scenario.to_yaml(), {"seed": scenario.seed, "data_sha256": task.data_hash})
    return drive(scenario, job, pricer, recorder, progress, ray_address, publish, fresh=True)


def drive(
    scenario: Scenario,
    job: Job,
    pricer: StepPricer,
    recorder: Recorder,
    progress: bool,
    ray_address: str | None,
    publish: Publish,
    *,
    fresh: bool,
) -> Path:
    """Carry out a run whose folder has been claimed, from its latest checkpoint on, and return the folder.

    Args:
        fresh: the folder was made for this: it goes again where nothing could be run.

    Raises:
        InputError: before anything has been run.
        RunError: when the run failed; what was recorded so far is in the folder.
    """
    # here, as both need a Session
    from simdist.irregular_run import run_irregular
    from simdist.lockstep_run import run_lockstep

    with occupied(recorder.folder), Progress(scenario.name, scenario.steps, progress) as bar:
        if not fresh:
            recorder.begin_again()
        session = Session(scenario, job, pricer, recorder, bar)
        session.publish = partial(publish, recorder.folder)
        with _kept(session, fresh):
            carry_out = run_lockstep if scenario.schedule.lockstep else run_irregular
            params, peak = carry_out(session, ray_address)
            summary = session.save("done", params, peak)
    if progress:
        print_summary(recorder.folder, summary)
    return recorder.folder


@contextmanager
def _kept(session: Session, fresh: bool) -> Iterator[None]:
    """Save what there is when a run ends early, and say where, and how to go on."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        rows, folder = session.recorder.steps, session.recorder.folder
        if isinstance(error, InputError) and not rows:
            # nothing has been run: the folder is free again for a better try
            if fresh:
                shutil.rmtree(folder)
            raise
        done = rows[-1]["step"] if rows else 0
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        session.extra["error"] = str(error)
        kept = f"everything up to step {done} is in {folder}"
        try:
            session.save(status, None, peak_rss_bytes())
        except OSError as second:
            # the first error is the news; that its record could not be written is added to it
            why = "the disk is full" if is_full(second) else str(second)
            kept = f"the record up to step {done} could not be written to {folder}: {why}"
        kept += f"\n{_how_to_go_on(session)}"
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"interrupted; {kept}") from None
        if isinstance(error, SimdistError):
            raise type(error)(f"{error}\n{kept}") from error
        if is_out_of_memory(error):
            engine = session.scenario.engine
            helps = what_helps(engine.stacked, engine.chunk, 1)
            raise RunError(f"out of memory after step {done}{wanted(error)}; {helps}\n{kept}") from error
        if is_full(error):
            raise RunError(f"the disk is full after step {done}: {error}\n{kept}") from error
        raise RunError(
            f"{type(error).__name__} after step {done}: {error}\n{kept}; "
            "`simdist --debug run ...` shows where it was raised"
        ) from error


def _how_to_go_on(session: Session) -> str:
    command = f"`simdist resume {session.recorder.folder}`"
    if session.saver is None or session.saver.step == 0:
        return f"{command} starts again from step 1, as there is no checkpoint"
    return f"{command} goes on after step {session.saver.step}"


def _free_folder(name: str) -> Path:
    """Return ``runs/<name>`` or the first ``runs/<name>-2``, ``-3``, ... that does not exist."""
    base = Path("runs") / name
    number = 1
    while (found := base if number == 1 else base.with_name(f"{name}-{number}")).exists():
        number += 1
    return found

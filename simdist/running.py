"""``simdist run``: carry out one scenario and write its run folder."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simdist.assembly import build_job, build_pricer, build_task
from simdist.communication.ledger import Ledger
from simdist.errors import InputError, RunError, SimdistError
from simdist.execution.engine import peak_rss_bytes
from simdist.results.folder import claim_folder
from simdist.results.perfetto import Trace
from simdist.results.progress import Progress, print_summary
from simdist.results.recorder import SPLIT, Recorder, mean_times, params_sha256

if TYPE_CHECKING:
    import torch

    from simdist.execution.pricing import StepPricer
    from simdist.scenario import Scenario
    from simdist.schedules import Job


class Session:
    """One run under way: what has been recorded, and how it is summed up.

    Attributes:
        pricer: says what steps cost, and which plan carries out which collective.
        ledger: filled by whoever drives the workers.
        extra: further entries of ``summary.json``.
    """

    def __init__(
        self, scenario: Scenario, job: Job, pricer: StepPricer, recorder: Recorder, progress: Progress
    ) -> None:
        self.scenario = scenario
        self.job = job
        self.pricer = pricer
        self.recorder = recorder
        self.ledger = Ledger(scenario.mesh.shape, pricer.plans)
        self.progress = progress
        self.trace = Trace(scenario.workers)
        self.extra: dict[str, Any] = {}
        self._began = time.monotonic()
        self._sent = 0

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
            "wall_seconds": time.monotonic() - self._began,
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
            "wall_seconds": time.monotonic() - self._began,
            "sent_bytes_total": self._sent,
            "sent_bytes_per_worker_per_step": self._sent / self.scenario.workers / len(rows) if rows else 0.0,
            "params_sha256": params_sha256(params) if params is not None else None,
            "ledger_sha256": self.ledger.sha256(),
            "peak_rss_bytes": peak_rss,
            **self.extra,
        }
        self.recorder.write_summary(summary)
        return summary


def _number(value: float | None) -> float | None:
    """Return a loss as JSON can hold it: null where it is not finite."""
    return value if value is not None and math.isfinite(value) else None


def run(scenario: Scenario, out: Path | None = None, progress: bool = True, ray_address: str | None = None) -> Path:
    """Run a scenario and return its run folder.

    Args:
        out: the folder to make; default ``runs/<name>``, with a number where that exists.
        progress: show a progress bar and a closing table.
        ray_address: of a running Ray cluster, for engine ``ray``.

    Raises:
        InputError: before anything has been run.
        RunError: when the run failed; what was recorded so far is in the folder.
    """
    # here, as both need a Session
    from simdist.irregular_run import run_irregular
    from simdist.lockstep_run import run_lockstep

    task = build_task(scenario)
    job = build_job(scenario, task)
    pricer = build_pricer(scenario)  # a network that does not fit is refused before a folder is made
    folder = claim_folder(out if out is not None else _free_folder(scenario.name), "run")
    environment = {"seed": scenario.seed, "data_sha256": task.data_hash}
    recorder = Recorder(folder, scenario.to_yaml(), environment)
    with Progress(scenario.name, scenario.steps, progress) as bar:
        session = Session(scenario, job, pricer, recorder, bar)
        with _kept(session, folder):
            drive = run_lockstep if scenario.schedule.lockstep else run_irregular
            params, peak = drive(session, ray_address)
            summary = session.save("done", params, peak)
    if progress:
        print_summary(folder, summary)
    return folder


@contextmanager
def _kept(session: Session, folder: Path) -> Iterator[None]:
    """Save what there is when a run ends early, and say where."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        rows = session.recorder.steps
        if isinstance(error, InputError) and not rows:
            # nothing has been run: the folder is free again for a better try
            shutil.rmtree(folder)
            raise
        done = rows[-1]["step"] if rows else 0
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        session.extra["error"] = str(error)
        session.save(status, None, peak_rss_bytes())
        kept = f"everything up to step {done} is in {folder}"
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"interrupted; {kept}") from None
        if isinstance(error, SimdistError):
            raise type(error)(f"{error}\n{kept}") from error
        raise RunError(
            f"{type(error).__name__} after step {done}: {error}\n{kept}; "
            "`simdist --debug run ...` shows where it was raised"
        ) from error


def _free_folder(name: str) -> Path:
    """Return ``runs/<name>`` or the first ``runs/<name>-2``, ``-3``, ... that does not exist."""
    base = Path("runs") / name
    number = 1
    while (found := base if number == 1 else base.with_name(f"{name}-{number}")).exists():
        number += 1
    return found

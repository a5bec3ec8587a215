"""simdist's side: one `simdist run` as a user has it, with clock, ledger, trace and tables, and where its time went.

Step times are the differences of ``wall_seconds`` in ``steps.parquet``, so they hold everything that a step costs:
training, pricing, booking. The last step, which also validates, is left out: ask for one step more.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from analysis.benchmarks.sides.report import report, since_start
from simdist.execution.engine import Engine, Holder
from simdist.loading import load_scenario
from simdist.results.tables import read_run
from simdist.running import run


class EngineTimes:
    """How long engines work: what is left of a run is pricing, booking and writing."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.by_step: list[float] = []
        self.entered: float | None = None

    def watch(self) -> None:
        """Time every engine that is entered from now on."""
        enter, times = Holder.__enter__, self

        def timed_enter(holder: Any) -> Any:
            began = time.perf_counter()
            times.entered = times.entered or began
            entered = enter(holder)
            times.seconds += time.perf_counter() - began
            if isinstance(entered, Engine):
                entered.steps = times._timed_steps(entered)  # type: ignore[method-assign]  # a stopwatch around it
                entered.parameters = times._timed(entered.parameters)  # type: ignore[method-assign]  # the same
            return entered

        Holder.__enter__ = timed_enter  # type: ignore[method-assign]  # the one place that every engine passes

    def _timed(self, function: Any) -> Any:
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - began

        return timed

    def _timed_steps(self, engine: Engine) -> Any:
        steps = engine.steps

        def timed(*args: Any, **kwargs: Any) -> Iterator[Any]:
            outcomes = iter(steps(*args, **kwargs))
            while True:
                began = time.perf_counter()
                outcome = next(outcomes, None)
                took = time.perf_counter() - began
                self.seconds += took
                if outcome is None:
                    return
                self.by_step.append(took)
                yield outcome

        return timed


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("scenario")
    parser.add_argument("out", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="changes")
    given = parser.parse_args()
    scenario = load_scenario(given.scenario, given.changes)
    times = EngineTimes()
    times.watch()
    before, began = since_start(), time.perf_counter()
    folder = run(scenario, out=given.out / "run", progress=False)
    ended = time.perf_counter()
    took = ended - began
    assert times.entered is not None, "a lock-step run enters an engine"
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    steps = read_run(folder).steps
    walls = [0.0, *map(float, steps["wall_seconds"])]
    seconds = [after - earlier for earlier, after in pairwise(walls)]
    report(
        start_seconds=before + took - walls[-1],
        step_seconds=seconds[:-1],
        engine_step_seconds=times.by_step[:-1],
        losses=[float(loss) for loss in steps["train_loss"]][:-1],
        peak_rss_bytes=summary["peak_rss_bytes"],
        # from the engine's start to the finished folder, and how much of that no engine was at work
        recorded_seconds=ended - times.entered,
        recording_seconds=ended - times.entered - times.seconds,
        params_sha256=summary["params_sha256"],
        ledger_sha256=summary["ledger_sha256"],
    )


if __name__ == "__main__":
    main()

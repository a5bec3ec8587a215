"""``simdist sweep``: which points run where, where results land, and the closing table."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import FrameType

from rich.console import Console

from simdist import sweeping
from simdist.errors import RunError
from simdist.results.landing import landing
from simdist.scenario import Scenario, Sweep
from simdist.side_by_side import cpus_of, side_by_side


def sweep_command(
    sweep: Sweep, out: str | None, *, parallel: int | None, ray_address: str | None, progress: bool
) -> None:
    """Run a sweep and print its table.

    Args:
        out: a folder or a URL; None: ``runs/NAME``.
        parallel: at most so many points at a time; None: one, or on a cluster as many as it has room for.
        ray_address: of a Ray cluster to run on.
        progress: whether points that run one after the other show theirs.

    Raises:
        InputError: for a bad combination, a folder that holds something else, or a cluster that cannot be used.
        RunError: naming the points that failed.
    """
    from simdist import resuming, running

    points = sweeping.points(sweep)
    at_once = ray_address is not None or (parallel or 1) > 1
    with landing(out if out is not None else str(Path("runs") / sweep.name), "sweep", _news) as place:
        with _one_ray([point.scenario for point in points], ray_address, parallel if at_once else None), _terminable():
            outcomes = sweeping.run_sweep(
                sweep,
                place.here,
                side_by_side(running.run, at_once=parallel, ray_address=ray_address)
                if at_once
                else sweeping.one_by_one(running.run, resuming.resume, progress=progress),
                tell=print,
                publish=place.publish,
            )
        Console().print(sweeping.table(outcomes))
        print(f"Sweep folder: {place.shown(place.here)}")
        failed = [outcome for outcome in outcomes if outcome.status == "failed"]
        if failed:
            named = "\n".join(f"  {outcome.point.name}: {outcome.message}" for outcome in failed)
            raise RunError(
                f"{len(failed)} of {len(outcomes)} points failed; the same command tries them again:\n{named}"
            )


def _news(text: str) -> None:
    print(f"simdist: {text}", file=sys.stderr)


@contextmanager
def _terminable() -> Iterator[None]:
    """Take SIGTERM as Ctrl-C: what is finished stays, tasks and an embedded Ray end."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _one_ray(scenarios: Sequence[Scenario], address: str | None, at_once: int | None) -> AbstractContextManager[None]:
    """Hold one Ray open for all points of a sweep that use it; do nothing if none does.

    Args:
        at_once: how many points run side by side; None: one after the other in this process.
    """
    if at_once is None and address is None:
        scenarios = [scenario for scenario in scenarios if scenario.engine.name == "ray"]
    if not scenarios:
        return nullcontext()
    from simdist.execution.ray_cluster import kept_alive

    return kept_alive(address, (at_once or 1) * max(cpus_of(scenario) for scenario in scenarios))

"""The points of a sweep side by side, as Ray tasks on the free resources of this machine or a cluster.

A point with a local engine is a task with ``engine.threads`` CPUs (one by default). A point with engine ``ray`` is a
task without any, whose actors take places on the same cluster; as many such points run at a time as there are CPUs for
all their actors. Values, bytes and simulated seconds are those of points that run one after the other.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from simdist.assembly import blocks_of
from simdist.sweeping import CarryOut, Point, Run, message_of, read_summary
from simdist.units import format_time

if TYPE_CHECKING:
    from simdist.execution.ray_shipping import Luggage
    from simdist.scenario import Scenario


def side_by_side(
    run: Run, *, at_once: int | None = None, ray_address: str | None = None, tell: Callable[[str], None] = print
) -> CarryOut:
    """Run points at the same time on the Ray that this process is connected to.

    Args:
        run: carries out one point; can be imported on the cluster's nodes.
        at_once: at most so many points; None: as many as the cluster has room for.
        ray_address: of that cluster; None for an embedded Ray.
        tell: takes a line of news for the user.
    """

    def carry_out(todo: Sequence[Point], out: Path, counted: Callable[[str], None]) -> Iterator[tuple[Point, str]]:
        from simdist.execution.ray_shipping import Luggage
        from simdist.execution.ray_tasks import Call, fill_folders

        for text in advice([point.scenario for point in todo]):
            tell(text)
        by_name = {point.name: point for point in todo}
        # paths lead to each node's own copy of the files; attached actors find the cluster that they are on
        attach = "auto" if ray_address else None
        calls = [
            Call(
                name=point.name,
                fill=functools.partial(
                    _fill, run, Luggage.packed(point.scenario.to_dict()), str(out / point.name), attach, sys.argv
                ),
                cpus=point.scenario.engine.threads or 1,
                cuda=point.scenario.engine.device == "cuda" and not _actors(point.scenario),
                actors=_actors(point.scenario),
            )
            for point in todo
        ]
        for name, message in fill_folders(calls, out, at_once, tell):
            point, folder = by_name[name], out / name
            if (folder / "scenario.yaml").is_file():
                # with the paths of this machine, not those of the node's copies
                (folder / "scenario.yaml").write_text(point.scenario.to_yaml(), encoding="utf-8")
            counted(f"{name}: {f'failed: {message}' if message else _told(folder)}")
            yield point, message

    return carry_out


def cpus_of(scenario: Scenario) -> int:
    """Return how many CPUs a point takes: of its task, or of its actors."""
    actors = len(blocks_of(scenario)) if scenario.engine.name == "ray" else 0
    return (scenario.engine.threads or 1) * max(1, actors)


def advice(scenarios: Sequence[Scenario]) -> list[str]:
    """Return what a user should know before points run side by side."""
    greedy = [one for one in scenarios if one.engine.name == "stacked" and one.engine.threads is None]
    if not greedy:
        return []
    news = (
        f"engine.threads: {len(greedy)} points of engine 'stacked' each use all cores of their node, and will share "
        "them; --set engine.threads=1 gives each its own (sums may then round otherwise)"
    )
    return [news]


def _actors(scenario: Scenario) -> float:
    if scenario.engine.name != "ray":
        return 0
    # actors share out all GPUs of the cluster among themselves
    return math.inf if scenario.engine.device == "cuda" else cpus_of(scenario)


def _fill(run: Run, luggage: Luggage, shown: str, attach: str | None, command: list[str], folder: Path) -> str:
    """Run in a task: carry out a point and return what went wrong, or nothing."""
    from simdist.scenario import Scenario

    sys.argv = list(command)  # for environment.json: what the user called
    try:
        run(Scenario.from_dict(luggage.unpacked()), out=folder, progress=False, ray_address=attach)
    except Exception as error:  # one bad point must not cost the others, as in one_by_one
        return message_of(error).replace(str(folder), shown)
    return ""


def _told(folder: Path) -> str:
    """Return how a finished point ended, for the line that says so."""
    summary = read_summary(folder)
    loss, seconds = summary.get("final_val_loss"), summary.get("wall_seconds")
    parts = [
        "done",
        f"val loss {loss:.4f}" if loss is not None else "",
        f"{format_time(seconds)} wall" if seconds is not None else "",
    ]
    return ", ".join(filter(None, parts))

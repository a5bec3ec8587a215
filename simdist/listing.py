"""What ``simdist list`` and ``simdist check`` show."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from simdist.assembly import build_job, build_task
from simdist.choosing import Kind
from simdist.codecs import codecs
from simdist.communication.plans import collectives
from simdist.devices import CUSTOM, STRAGGLERS, devices
from simdist.errors import InputError, suggest
from simdist.registry import summary_of
from simdist.scenario import COMPRESSION, NETWORK, OPTIMIZER, OVERLAP, SCHEDULE, WORKLOAD, Scenario, Sweep
from simdist.sweeping import points

if TYPE_CHECKING:
    from rich.table import Table

Rows = list[tuple[str, str]]


def _of(kind: Kind) -> Callable[[], Rows]:
    return lambda: [(name, summary_of(thing)) for name, thing in kind.filled().items()]


def _codecs() -> Rows:
    stateless = [(name, summary_of(thing)) for name, thing in codecs.items()]
    # the other half of the catalogue: methods with a memory, which go under compression.<axis>
    return stateless + [(f"compression: {name}", summary_of(thing)) for name, thing in COMPRESSION.filled().items()]


def _devices() -> Rows:
    presets = [(name, device.summary) for name, device in devices.items()]
    return [*presets, (CUSTOM, "your own numbers: compute.peak_flops and compute.peak_memory")]


def _models() -> Rows:
    from simdist.workloads.presets import presets

    return [(name, preset.summary) for name, preset in presets.items()]


def _collectives() -> Rows:
    return [(name, summary_of(thing)) for name, thing in collectives.items()]


LISTS: dict[str, Callable[[], Rows]] = {
    "optimizers": _of(OPTIMIZER),
    "codecs": _codecs,
    "topologies": _of(NETWORK),
    "collectives": _collectives,
    "overlap": _of(OVERLAP),
    "workloads": _of(WORKLOAD),
    "models": _models,
    "schedules": _of(SCHEDULE),
    "devices": _devices,
    "stragglers": _of(STRAGGLERS),
}


def tables(what: str | None) -> list[Table]:
    """Return a table for one list, or for all.

    Raises:
        InputError: for a list that does not exist.
    """
    from rich.markup import escape
    from rich.table import Table

    if what is not None and what not in LISTS:
        raise InputError(f"got {what!r}; expected one of {', '.join(LISTS)}.{suggest(what, LISTS)}")
    shown = []
    for title in LISTS if what is None else [what]:
        table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2))
        for name, summary in LISTS[title]():
            table.add_row(escape(name), escape(summary))
        shown.append(table)
    return shown


def check_scenario(scenario: Scenario) -> str:
    """Check everything short of running, and return the resolved scenario as YAML with the counts as comments.

    Raises:
        InputError: for whatever would stop the run before its first step.
    """
    task = build_task(scenario)
    # a schedule that does not fit the mesh says so when its program is made
    scenario.schedule.program(build_job(scenario, task))
    sizes = [math.prod(param.shape) for unit in task.units for param in unit.params]
    mesh = scenario.mesh
    return (
        f"{scenario.to_yaml()}"
        f"# workers: {scenario.workers} ({mesh.replicas} replicas x {mesh.shards} shards)\n"
        f"# parameters: {sum(sizes):,} in {len(sizes)} tensors and {len(task.units)} units"
    )


def check_sweep(sweep: Sweep) -> str:
    """Check every point of a sweep, and return the sweep as YAML with the points as comments."""
    found = points(sweep)
    for point in found:
        try:
            check_scenario(point.scenario)
        except InputError as error:
            raise InputError(f"sweep point {point.name}: {error}") from None
    named = "\n".join(f"#   {point.name}" for point in found)
    return f"{sweep.to_yaml()}# points: {len(found)}\n{named}"

"""How much bandwidth a recorded run needs to keep its workers computing: the table that the DiLoCo papers print.

Compute utilisation is the share of simulated time in which workers compute: their compute seconds over the step
seconds, over all recorded steps (Douillard et al. 2025, Streaming DiLoCo, arXiv 2501.18512: Gbit/s needed for a
compute utilisation). Nothing of the run's own network changes but ``network.bandwidth``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from simdist.assembly import build_pricer
from simdist.communication.trace import StepOps
from simdist.errors import InputError
from simdist.execution.clock import LockstepClock
from simdist.loading import load_scenario, override, parse_set
from simdist.results.program_file import ProgramFile
from simdist.results.report import compare, folder_for, write_report
from simdist.results.tables import Run
from simdist.results.utilisation_table import TARGETS, Utilisation, UtilisationTable
from simdist.retiming import check_keys
from simdist.scenario import Scenario

#: bandwidths in bit/s at which every run is priced, two to a decade: at the last one links cost their latency only
GRID = tuple(10.0 ** (half / 2) for half in range(6, 31))
#: bandwidths are found to one percent
PRECISION = 1.01


def utilisations(runs: Sequence[Run], changes: Mapping[str, Any] | None = None) -> UtilisationTable:
    """Return the utilisation of finished runs over bandwidth; runs that differ in values only are priced once.

    Args:
        changes: keys of ``network``, ``compute`` and ``overlap`` to values that replace the runs' own.

    Raises:
        InputError: for other keys, or values that do not fit.
    """
    changes = changes or {}
    check_keys(changes)
    rows: list[Utilisation] = []
    left_out: dict[str, str] = {}
    known: dict[tuple[tuple[StepOps, ...], str], Utilisation] = {}
    for run in runs:
        try:
            program = tuple(ProgramFile.read(run.path / "program.json").ops())
            scenario = override(load_scenario(str(run.path / "scenario.yaml")), changes)
            # as text: settings may hold lists
            key = (program, repr((scenario.mesh, scenario.network, scenario.compute, scenario.overlap)))
            if key not in known:
                known[key] = search(run.label, _pricing(scenario, program))
        except InputError as error:
            left_out[run.label] = str(error)
            continue
        rows.append(Utilisation(run.label, known[key].needed, known[key].curve))
    if changes and not rows and left_out:
        raise InputError(next(iter(left_out.values())))
    return UtilisationTable(rows, left_out, [f"{key}={value}" for key, value in changes.items()])


def report_command(
    paths: Sequence[Path], out: Path | None, changes: Sequence[str] = (), shown: Callable[[Path], str] = str
) -> None:
    """Write the report on some runs and print the bandwidths that they need.

    Args:
        changes: ``KEY=VALUE`` for the table of bandwidths, in place of the runs' own settings.
        shown: says where a file is, for people.

    Raises:
        InputError: for paths without runs, or where the page would replace a file that is not ours.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    comparison = compare(paths)
    folder = folder_for(paths, out)
    used = utilisations(comparison.shown, parse_set(changes))
    page = write_report(comparison, folder, used)
    if used.rows:
        table = Table(*used.header(), title=used.title, title_justify="left")
        for row in used.texts():
            table.add_row(*(escape(cell) for cell in row))
        Console().print(table)
    for label, reason in used.left_out.items():
        print(f"{label} is not in the table of bandwidths: {reason}")
    print(f"Report: {shown(page)}")


def _pricing(scenario: Scenario, program: Sequence[StepOps]) -> Callable[[float], float]:
    """Return what prices a run under a bandwidth in bit/s and returns its utilisation.

    Raises:
        InputError: where one bandwidth does not describe the links.
    """
    if build_pricer(scenario).network.varies:
        raise InputError("its links vary with time, so that no one bandwidth describes them")

    def at(bandwidth: float) -> float:
        clock = LockstepClock(build_pricer(override(scenario, {"network.bandwidth": bandwidth})))
        times = [clock.advance(ops) for ops in program]
        total = times[-1].simulated_seconds if times else 0.0
        return math.fsum(one.compute_seconds for one in times) / total if total > 0 else 1.0

    return at


def search(label: str, at: Callable[[float], float], targets: Sequence[float] = TARGETS) -> Utilisation:
    """Find the bandwidths from which on ``at(bandwidth)`` is at least each of the targets.

    More bandwidth does not always help: plans change with it, and one collective may get in the way of another. So a
    target is met from X on if it is met at X and at every greater bandwidth that was tried (:data:`GRID` and more).

    Args:
        at: utilisation (0 to 1) under a bandwidth in bit/s.
    """
    curve = {bandwidth: at(bandwidth) for bandwidth in GRID}
    needed = {target: _first(at, curve, target) for target in targets}
    return Utilisation(label, needed, dict(sorted(curve.items())))


def _first(at: Callable[[float], float], curve: dict[float, float], target: float) -> float | None:
    """Return the bandwidth from which on a target is met, or None; whatever is tried joins the curve."""
    missed = [bandwidth for bandwidth, share in curve.items() if share < target]
    if not missed:
        return min(curve)
    low = max(missed)
    high = min((bandwidth for bandwidth in curve if bandwidth > low), default=None)
    while high is not None and high > low * PRECISION:
        middle = math.sqrt(low * high)
        curve[middle] = at(middle)
        low, high = (low, middle) if curve[middle] >= target else (middle, high)
    return high

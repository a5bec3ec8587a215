"""``python -m analysis.benchmarks``: what emulation costs, beside plain loops and beside peers (``make bench``).

Measures every case in turns, writes ``results.json`` (all samples), prints the table, draws the figures. Exit status 1
if a target is missed or a case fails. Leave the machine alone meanwhile: sides run in turns, but noise is noise.

    python -m analysis.benchmarks                      # all cases, about an hour on 2 idle cores
    python -m analysis.benchmarks --only step_time     # one case; the others' results stay
    python -m analysis.benchmarks --report             # table and figures of what was measured before
    python -m analysis.benchmarks --quick --out DIR    # tiny sizes: does everything work?
    python -m analysis.benchmarks --make-flower        # first make Flower's environment (build/flower)
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from analysis.benchmarks.case import FULL, HERE, QUICK, Case, Size, all_cases
from analysis.benchmarks.figures import draw
from analysis.benchmarks.flower import make_environment
from analysis.benchmarks.measuring import Sampler, SideFailed, machine, stamp
from analysis.benchmarks.report import missed, print_table

RESULTS = "results.json"
#: of the table where nobody watches
WIDTH = 110


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    found = argparse.ArgumentParser(prog="python -m analysis.benchmarks", description=(__doc__ or "").splitlines()[0])
    found.add_argument("--only", action="append", metavar="CASE", help="measure this case only (may be repeated)")
    found.add_argument("--quick", action="store_true", help="a smoke run with tiny sizes, into --out")
    found.add_argument("--report", action="store_true", help="measure nothing; redraw what results.json holds")
    found.add_argument("--out", type=Path, help=f"folder of results.json and figures (default: {HERE.name}/)")
    found.add_argument("--rounds", type=int, help="samples of every side (default: as each case says)")
    found.add_argument("--make-flower", action="store_true", help="make Flower's environment first, if it is not there")
    found.add_argument("--flower", type=Path, metavar="PYTHON", help="the interpreter of an environment with Flower")
    found.add_argument("--list", action="store_true", help="name the cases and what they measure")
    return found


def chosen(size: Size, only: list[str] | None) -> dict[str, Case]:
    """Return the cases to measure.

    Raises:
        SystemExit: for a name that no case has.
    """
    cases = all_cases(size)
    unknown = [name for name in only or () if name not in cases]
    if unknown:
        sys.exit(f"--only: got {', '.join(unknown)}; expected some of {', '.join(cases)}")
    return {name: cases[name] for name in only or cases}


def entry_of(case: Case, sampler: Sampler, console: Console) -> dict[str, Any]:
    """Measure one case; what cannot be measured is said in its place."""
    if case.missing is not None:
        console.print(f"{case.name}: skipped: {case.missing}")
        return {"says": case.says, "skipped": case.missing, **stamp()}
    try:
        return sampler.measure(case)
    except SideFailed as error:
        console.print(f"{case.name}: failed: {error}", style="red", markup=False)
        return {"says": case.says, "failed": str(error), **stamp()}


def save(folder: Path, results: dict[str, Any]) -> None:
    """Write the results whole or not at all."""
    draft = folder / f"{RESULTS}.tmp"
    draft.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    os.replace(draft, folder / RESULTS)


def load(folder: Path) -> dict[str, Any] | None:
    """Return the results that a folder holds, if it does."""
    path = folder / RESULTS
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def main(arguments: list[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    # so that whatever is being measured ends too
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    size = QUICK if given.quick else FULL
    if given.flower is not None:
        # not resolved: an environment's interpreter is a link to the system's
        size = dataclasses.replace(size, flower_python=given.flower.absolute())
    if given.list:
        for case in all_cases(size).values():
            console.print(f"[bold]{case.name}[/bold]: {case.says}" + (f" ({case.missing})" if case.missing else ""))
        return 0
    if given.quick and given.out is None:
        sys.exit("--quick: got no --out; expected a folder for its results, as they are not worth keeping")
    folder: Path = given.out or HERE
    before = load(folder)
    if given.report:
        if before is None:
            sys.exit(f"--report: got {folder}, which has no {RESULTS}; expected a folder where something was measured")
        results = before
    else:
        if given.make_flower:
            make_environment(size.flower_python)
        folder.mkdir(parents=True, exist_ok=True)
        results = measure(given, size, folder, before, console)
    print_table(results, console)
    for path in draw(results, folder):
        console.print(f"Figure: {path}")
    wrong = missed(results)
    for line in wrong:
        console.print(f"missed: {line}", style="red", markup=False)
    return 1 if wrong else 0


def measure(
    given: argparse.Namespace, size: Size, folder: Path, before: dict[str, Any] | None, console: Console
) -> dict[str, Any]:
    """Measure the chosen cases and save after each; with --only, what the others had is kept."""
    cases = chosen(size, given.only)
    kept = before["cases"] if before is not None and given.only and before["quick"] == size.quick else {}
    measured: dict[str, Any] = {}
    sampler = Sampler(size.threads, lambda text: console.print(text, style="dim", markup=False))
    for name, case in cases.items():
        if given.rounds is not None:
            case = dataclasses.replace(case, rounds=given.rounds)
        measured[name] = entry_of(case, sampler, console)
        # one order, whatever was measured when
        merged = {name: (kept | measured)[name] for name in all_cases(size) if name in kept | measured}
        results = {"quick": size.quick, "machine": machine(), "cases": merged}
        save(folder, results)
    return results


if __name__ == "__main__":
    sys.exit(main())

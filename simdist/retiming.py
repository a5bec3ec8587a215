"""``simdist retime``: price a recorded lock-step run under other networks, without training.

The run left the descriptors of every step in ``program.json``. They are handed to the same clock, ledger and writers
that the run itself used, so the times are those of a full run, bit for bit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simdist.assembly import build_plan, build_pricer
from simdist.communication.ledger import Ledger
from simdist.errors import InputError
from simdist.execution.clock import LockstepClock, collective_times
from simdist.loading import load_scenario, override, parse_over, parse_set
from simdist.results.folder import kind_of
from simdist.results.program_file import ProgramFile
from simdist.results.recorder import read_steps, write_json, write_ledger, write_steps
from simdist.scenario import Scenario, Sweep
from simdist.sweeping import points, read_summary
from simdist.units import format_size, format_time
from simdist.yaml_text import dump

if TYPE_CHECKING:
    from rich.table import Table

#: what may differ between a run and its re-timing: everything that decides seconds, nothing that decides values
SECTIONS = ("network", "compute")


def retime(run: Path, scenario: Scenario, folder: Path) -> dict[str, Any]:
    """Price one run under the network and compute settings of ``scenario`` and write the result to ``folder``.

    Returns:
        the summary, as ``summary.json`` has it.

    Raises:
        InputError: when the folder is no finished lock-step run, or the network does not fit its workers.
    """
    rows = read_steps(run / "steps.parquet")
    program = ProgramFile.read(run / "program.json").ops()
    if len(program) != len(rows):
        raise InputError(
            f"{run} is damaged: {len(program)} recorded steps but {len(rows)} rows; run the scenario again"
        )
    clock = LockstepClock(build_pricer(scenario))
    ledger = Ledger(scenario.mesh.shape, build_plan(scenario))
    sent = 0
    for row, ops in zip(rows, program, strict=True):
        times = clock.advance(ops)
        ledger.add_step(row["step"], ops, collective_times(ops, times))
        step_bytes = ledger.step_bytes(ops)
        sent += step_bytes
        row |= {
            "simulated_seconds": times.simulated_seconds,
            "compute_seconds": times.compute_seconds,
            "exposed_comm_seconds": times.exposed_comm_seconds,
            "sent_bytes_total": sent,
            "sent_bytes_per_worker": step_bytes / scenario.workers,
        }
    summary = {
        **json.loads((run / "summary.json").read_text(encoding="utf-8")),
        "simulated_seconds": rows[-1]["simulated_seconds"] if rows else 0.0,
        "sent_bytes_total": sent,
        "sent_bytes_per_worker_per_step": sent / scenario.workers / max(1, len(rows)),
        "ledger_sha256": ledger.sha256(),
    }
    _claim(folder)
    resolved = scenario.to_dict()
    (folder / "network.yaml").write_text(dump({key: resolved[key] for key in SECTIONS}), encoding="utf-8")
    write_steps(folder / "steps.parquet", rows)
    write_ledger(folder / "ledger.parquet", ledger)
    write_json(folder / "summary.json", summary)
    return summary


def retime_command(run: Path, changes: list[str], over: list[str], out: Path | None) -> None:
    """Price a run under every combination of ``--over`` and print a table.

    Args:
        out: where the re-timings go, a folder each; default ``RUN/retimed``.

    Raises:
        InputError: for keys that change more than time, or a folder that is no run.
    """
    from rich.console import Console

    runs = _finished_runs(run)
    if out is not None and len(runs) > 1:
        raise InputError(f"--out: got {str(out)!r} with a sweep of {len(runs)} runs; expected it with one run only")
    fixed, varied = parse_set(changes), parse_over(over)
    _check_keys([*fixed, *varied])
    if not fixed and not varied:
        raise InputError(
            "got nothing to change; expected --set network.KEY=VALUE or --over network.bandwidth=10Mbit/s,1Gbit/s"
        )
    for one in runs:
        base = override(load_scenario(str(one / "scenario.yaml")), fixed)
        # --set values are part of the name too, so that different prices never share a folder
        wanted = Sweep(base=base, over={**{key: [value] for key, value in fixed.items()}, **varied})
        target = out if out is not None else one / "retimed"
        rows = [(point.name, retime(one, point.scenario, target / point.name)) for point in points(wanted)]
        Console().print(_table(rows))
        print(f"Re-timings: {target}")


def _finished_runs(path: Path) -> list[Path]:
    """Return the run folder itself, or those of a sweep.

    Raises:
        InputError: when there is none, or one is not finished.
    """
    kind = kind_of(path)
    runs = [path] if kind == "run" else sorted(p.parent for p in path.glob("*/scenario.yaml")) if kind else []
    if not runs:
        raise InputError(
            f"got {str(path)!r}, which is no run folder; expected one that `simdist run` or `simdist sweep` wrote"
        )
    for run in runs:
        status = read_summary(run).get("status", "no summary.json")
        if status != "done":
            raise InputError(f"got {str(run)!r}, which is not finished ({status}); expected a finished run")
    return runs


def _claim(folder: Path) -> None:
    """Make the folder of a re-timing; an earlier re-timing there is replaced, all else is left alone."""
    advice = "expected a new folder, or that of an earlier re-timing: choose another --out"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and (kind_of(folder) or not (folder / "network.yaml").is_file()):
            raise InputError(f"--out: got {str(folder)!r}, which holds something else; {advice}")
    except OSError as error:
        raise InputError(f"--out: got {str(folder)!r}, which cannot be used ({error}); {advice}") from None


def _check_keys(keys: list[str]) -> None:
    for key in keys:
        section = key.split(".", 1)[0]
        if section not in SECTIONS:
            raise InputError(
                f"{key}: re-timing changes seconds only; expected keys of {' or '.join(SECTIONS)}: "
                f"to change anything else, train again with `simdist run --set {key}=...`"
            )
        if key == "network.mode":
            raise InputError(f"{key}: a re-timing moves no data, so nothing can be paced; expected another network key")


def _table(rows: list[tuple[str, dict[str, Any]]]) -> Table:
    from rich.table import Table

    table = Table("network", "simulated", "per step", "sent, all workers")
    for name, summary in rows:
        seconds = summary["simulated_seconds"]
        table.add_row(
            name,
            format_time(seconds),
            format_time(seconds / max(1, summary["steps"])),
            format_size(summary["sent_bytes_total"]),
        )
    return table

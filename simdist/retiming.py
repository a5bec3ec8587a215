"""``simdist retime``: price a recorded lock-step run under other networks, without training.

The run left the descriptors of every step in ``program.json``. They are handed to the same clock, ledger and writers
that the run itself used, so the times are those of a full run, bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from simdist.assembly import build_pricer
from simdist.communication.ledger import Ledger
from simdist.communication.trace import CollectiveOp, StepOps
from simdist.errors import InputError
from simdist.execution.clock import LockstepClock, StepTimes, collective_times
from simdist.execution.pricing import StepPricer
from simdist.loading import load_scenario, override, parse_over, parse_set
from simdist.results.folder import kind_of
from simdist.results.perfetto import Trace
from simdist.results.program_file import ProgramFile
from simdist.results.recorder import SPLIT, mean_times, write_json
from simdist.results.retimed import LedgerTable, StepsTable
from simdist.scenario import Scenario, Sweep
from simdist.sweeping import points, read_summary, short_keys, value_label
from simdist.tracing import Drawing
from simdist.units import format_size, format_time
from simdist.yaml_text import dump

if TYPE_CHECKING:
    from rich.table import Table

#: networks in one command that get a time line each: drawing one takes longer than pricing the run
TRACED = 10
#: columns of ``steps.parquet`` that a re-timing replaces, as the clock calls them
TIMES = ("simulated_seconds", *SPLIT)
#: what may differ between a run and its re-timing: everything that decides seconds, nothing that decides values
SECTIONS = ("network", "compute", "overlap")


@dataclass(frozen=True)
class _Booked:
    """What one choice of plans puts into the ledger: the same for all networks that lead to it.

    Attributes:
        table: the ledger without its times.
        sha256: its hash.
        sent: bytes that all workers send, per step.
    """

    table: LedgerTable
    sha256: str
    sent: list[int]


class RecordedRun:
    """A finished lock-step run, read once, to be priced under many networks.

    Raises:
        InputError: when the folder is no finished lock-step run.
    """

    def __init__(self, folder: Path) -> None:
        self._summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        self._steps = StepsTable(folder / "steps.parquet")
        self._program = ProgramFile.read(folder / "program.json").ops()
        self._structures = list(dict.fromkeys(self._program))
        self._booked: dict[tuple[object, ...], _Booked] = {}
        if len(self._program) != len(self._steps.numbers):
            raise InputError(
                f"{folder} is damaged: {len(self._program)} recorded steps but {len(self._steps.numbers)} rows; "
                "run the scenario again"
            )

    def retime(self, scenario: Scenario, folder: Path, traced: bool = True) -> dict[str, Any]:
        """Price the run under the network, compute and overlap of ``scenario`` and write the result to ``folder``.

        Args:
            traced: also write ``trace.json``.

        Returns:
            the summary, as ``summary.json`` has it.

        Raises:
            InputError: when the network does not fit the workers, or ``folder`` holds something else.
        """
        pricer = build_pricer(scenario)
        clock = LockstepClock(pricer)
        times = [clock.advance(ops) for ops in self._program]
        booked = self._book(scenario, pricer)
        sent = list(accumulate(booked.sent))
        columns: dict[str, list[Any]] = {name: [getattr(one, name) for one in times] for name in TIMES}
        columns["sent_bytes_total"] = sent
        columns["sent_bytes_per_worker"] = [size / scenario.workers for size in booked.sent]
        summary = {
            **self._summary,
            "simulated_seconds": times[-1].simulated_seconds if times else 0.0,
            **mean_times(columns),
            "sent_bytes_total": sent[-1] if sent else 0,
            "sent_bytes_per_worker_per_step": (sent[-1] if sent else 0) / scenario.workers / max(1, len(sent)),
            "ledger_sha256": booked.sha256,
        }
        _claim(folder)
        resolved = scenario.to_dict()
        (folder / "network.yaml").write_text(dump({key: resolved[key] for key in SECTIONS}), encoding="utf-8")
        self._steps.write(folder / "steps.parquet", columns)
        booked.table.write(folder / "ledger.parquet", *self._ledger_times(times))
        if traced:
            self._draw(pricer, times, folder / "trace.json")
        write_json(folder / "summary.json", summary)
        return summary

    def _draw(self, pricer: StepPricer, times: Sequence[StepTimes], path: Path) -> None:
        trace = Trace(pricer.network.workers)
        drawing = Drawing(trace, pricer)
        for step, ops, one in zip(self._steps.numbers, self._program, times, strict=True):
            drawing.add(step, ops, one)
        trace.write(path)

    def _book(self, scenario: Scenario, pricer: StepPricer) -> _Booked:
        """Book the run under the plans that the pricer chooses; networks seldom change these."""
        plans = tuple(pricer.plans(ops) for ops in self._structures)
        if plans not in self._booked:
            ledger = Ledger(scenario.mesh.shape, pricer.plans)
            for step, ops in zip(self._steps.numbers, self._program, strict=True):
                ledger.add_step(step, ops, repeat((0.0, 0.0), _collectives(ops)))
            sent = [ledger.step_bytes(ops) for ops in self._program]
            self._booked[plans] = _Booked(LedgerTable(ledger), ledger.sha256(), sent)
        return self._booked[plans]

    def _ledger_times(self, times: Sequence[StepTimes]) -> NDArray[np.float64]:
        """Return start and end of every row of the ledger, shape [2, rows]."""
        relative: dict[int, NDArray[np.float64]] = {}  # by the timing's id: most steps share one
        parts = []
        for ops, one in zip(self._program, times, strict=True):
            key = id(one.timing)
            if key not in relative:
                pairs = list(collective_times(ops, replace(one, start=0.0)))
                relative[key] = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
            parts.append(one.start + relative[key])
        return np.concatenate(parts, axis=1)


def _collectives(ops: StepOps) -> int:
    return sum(isinstance(op, CollectiveOp) for wave in ops for op in wave)


def retime_command(
    run: Path, changes: list[str], over: list[str], out: Path | None, shown: Callable[[Path], str] = str
) -> None:
    """Price a run under every combination of ``--over`` and print a table.

    Args:
        out: where the re-timings go, a folder each; default ``RUN/retimed``.
        shown: says where a folder is, for people.

    Raises:
        InputError: for keys that change more than time, or a folder that is no run.
    """
    from rich.console import Console

    runs = _finished_runs(run)
    if out is not None and len(runs) > 1:
        raise InputError(f"--out: got {str(out)!r} with a sweep of {len(runs)} runs; expected it with one run only")
    fixed, varied = parse_set(changes), parse_over(over)
    check_keys([*fixed, *varied])
    if not fixed and not varied:
        raise InputError(
            "got nothing to change; expected --set network.KEY=VALUE or --over network.bandwidth=10Mbit/s,1Gbit/s"
        )
    for one in runs:
        recorded = RecordedRun(one)
        base = override(load_scenario(str(one / "scenario.yaml")), fixed)
        # --set values are part of the name too, so that different prices never share a folder
        wanted = Sweep(base=base, over={**{key: [value] for key, value in fixed.items()}, **varied})
        target = out if out is not None else one / "retimed"
        todo = points(wanted)
        traced = len(todo) <= TRACED
        titles = short_keys(list(varied))
        rows = []
        for point in todo:
            label = ", ".join(f"{title}={value_label(point.changes[key])}" for key, title in titles.items())
            rows.append((label or "as set", recorded.retime(point.scenario, target / point.name, traced)))
        if fixed:
            print("With", ", ".join(f"{key}={value_label(value)}" for key, value in fixed.items()))
        Console().print(_table(rows))
        print(f"Re-timings: {shown(target)}")
        if not traced:
            print(f"No trace.json: {len(todo)} networks at once; up to {TRACED} get one each")


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


def check_keys(keys: Iterable[str]) -> None:
    """Raise InputError for keys that change more than time."""
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
    from rich.table import Column, Table

    numbers = ("simulated", "a step", "computing", "exposed", "hidden", "sent")
    # a narrow terminal may fold the names, never the numbers
    columns = [Column(name, no_wrap=True, justify="right", min_width=len(name)) for name in numbers]
    table = Table(Column("network", overflow="fold"), *columns)
    for name, summary in rows:
        seconds = summary["simulated_seconds"]
        table.add_row(
            name,
            format_time(seconds),
            format_time(seconds / max(1, summary["steps"])),
            *(format_time(summary[f"{column}_per_step"]) for column in SPLIT),
            format_size(summary["sent_bytes_total"]),
        )
    return table

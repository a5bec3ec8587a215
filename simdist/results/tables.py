"""Reads run folders back, names the runs, and computes the numbers that figures and tables show.

Columns arrive as numpy arrays with one value per recorded step; a value that was not measured is NaN. Simulated
seconds and bytes are never mixed with wall time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.parquet
import yaml
from numpy.typing import NDArray

from simdist.errors import InputError
from simdist.units import parse_rate

Column: TypeAlias = "NDArray[np.float64]"
Steps: TypeAlias = "Mapping[str, Column]"

STEP_COLUMNS = (
    "step",
    "train_loss",
    "val_loss",
    "lr",
    "simulated_seconds",
    "compute_seconds",
    "exposed_comm_seconds",
    "hidden_comm_seconds",
    "sent_bytes_total",
    "sent_bytes_per_worker",
    "wall_seconds",
)
#: what runs of earlier versions lack; it reads as not measured
LATER_COLUMNS = ("hidden_comm_seconds",)


@dataclass(frozen=True, eq=False)
class Retiming:
    """The same run priced under another network.

    Attributes:
        path: the folder ``RUN/retimed/<label>``.
        bandwidth: of its network, in bit/s.
        conditions: its resolved settings of all that decides seconds.
        steps: the run's columns with the new times.
    """

    path: Path
    bandwidth: float
    conditions: Mapping[str, Any]
    steps: Steps


@dataclass(frozen=True, eq=False)
class Run:
    """One finished run folder.

    Attributes:
        path: the folder.
        scenario: the resolved scenario as saved.
        summary: ``summary.json``.
        steps: columns of ``steps.parquet``, each of shape [recorded steps].
        retimed: by bandwidth, then by folder name.
        label: short name among the runs it was read with, for people.
    """

    path: Path
    scenario: Mapping[str, Any]
    summary: Mapping[str, Any]
    steps: Steps
    retimed: tuple[Retiming, ...] = ()
    label: str = ""

    @property
    def conditions(self) -> Mapping[str, Any]:
        """The settings that the run itself was timed under: see :func:`conditions_of`."""
        return conditions_of(self.scenario)

    @cached_property
    def environment(self) -> dict[str, Any]:
        """``environment.json``, or an empty dictionary where there is none."""
        path = self.path / "environment.json"
        return _read_json(path) if path.exists() else {}

    @cached_property
    def diagnostics(self) -> dict[str, Column]:
        """Numeric columns of ``diagnostics.parquet``, a value per (step, matrix); empty where there are none."""
        path = self.path / "diagnostics.parquet"
        table = _read_table(path) if path.exists() else pyarrow.table({})
        return {name: _column(table, name) for name in table.column_names if _is_number(table.schema.field(name).type)}

    def mean_seconds(self, column: str) -> float:
        """Return the mean of a column of seconds over the steps; NaN where it was not measured."""
        return float(np.mean(self.steps[column]))

    def ledger(self, columns: Sequence[str] | None = None) -> Any:
        """Read ``ledger.parquet`` (now, not earlier) as a pyarrow table, all columns or the named ones."""
        return _read_table(self.path / "ledger.parquet", columns)

    @cached_property
    def bytes_by_purpose(self) -> dict[tuple[str, str], float]:
        """Bytes that a worker sends in an average step, by (purpose, axis), largest first.

        The ledger's totals are used, so a message that one worker sends is averaged over all workers too.
        """
        table = self.ledger(["purpose", "axis", "sent_bytes_total"])
        share = pyarrow.array(_column(table, "sent_bytes_total") / max(1, int(self.summary.get("workers", 1))))
        keys = pyarrow.table({"purpose": table["purpose"], "axis": table["axis"], "sent": share})
        sums = keys.group_by(["purpose", "axis"]).aggregate([("sent", "sum")]).to_pylist()
        steps = max(1, len(self.steps["step"]))
        found = {(str(row["purpose"]), str(row["axis"] or "")): row["sent_sum"] / steps for row in sums}
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


# --- reading -----------------------------------------------------------------------------------------------------


def find_runs(paths: Sequence[Path]) -> list[Run]:
    """Read every run at or below the paths, in the order given (below a folder: by name), each once, and label them.

    Raises:
        InputError: for a path that is missing, holds no finished run, or holds a damaged one.
    """
    folders: dict[Path, Path] = {}
    for path in paths:
        found = [folder for folder, finished in _folders(path) if finished]
        if not found:
            raise InputError(_no_run(path))
        for folder in found:
            folders.setdefault(folder.resolve(), folder)
    runs = [read_run(folder) for folder in folders.values()]
    return [
        Run(run.path, run.scenario, run.summary, run.steps, run.retimed, label)
        for run, label in zip(runs, labels(runs), strict=True)
    ]


def unfinished(paths: Sequence[Path]) -> list[Path]:
    """Return the run folders below the paths that hold a scenario but no summary: stopped, failed, or still going."""
    return [folder for path in paths for folder, finished in _folders(path) if not finished]


def read_run(folder: Path) -> Run:
    """Read one run folder and its re-timings (the ledger and the diagnostics wait until somebody asks)."""
    scenario = _read_yaml(folder / "scenario.yaml")
    summary = _read_json(folder / "summary.json")
    steps = _read_steps(folder / "steps.parquet")
    retimed = [_read_retiming(path.parent) for path in sorted(folder.glob("retimed/*/network.yaml"))]
    retimed.sort(key=lambda retiming: (retiming.bandwidth, retiming.path.name))
    return Run(folder, scenario, summary, steps, tuple(retimed))


def _read_retiming(folder: Path) -> Retiming:
    saved = _read_yaml(folder / "network.yaml")
    conditions = conditions_of(saved)
    bandwidth = bandwidth_of(conditions)
    if bandwidth is None:
        raise InputError(
            f"{folder / 'network.yaml'} has no network.bandwidth; delete that folder and run `simdist retime` again"
        )
    return Retiming(folder, bandwidth, conditions, _read_steps(folder / "steps.parquet"))


def conditions_of(scenario: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections of a resolved scenario that decide seconds; runs of earlier versions overlapped nothing."""
    sections = {key: scenario.get(key) or {} for key in ("network", "compute")}
    return {**sections, "overlap": scenario.get("overlap") or {"policy": "none"}}


def bandwidth_of(conditions: Mapping[str, Any]) -> float | None:
    """Return ``network.bandwidth`` in bit/s, or None where the network has none that is one number."""
    value = conditions.get("network", {}).get("bandwidth")
    try:
        return parse_rate(value)
    except ValueError:
        return None


def _folders(path: Path) -> list[tuple[Path, bool]]:
    """Return (run folder, finished) at or below a path; a run folder is not searched further."""
    found = []
    for folder, below, files in os.walk(path):
        below.sort()
        if "scenario.yaml" in files:
            found.append((Path(folder), "summary.json" in files))
            below.clear()
    return found


def _no_run(path: Path) -> str:
    expected = "expected a run folder (with scenario.yaml and summary.json) or a folder that holds some"
    if not path.exists():
        return f"{path} does not exist; {expected}, as `simdist run` and `simdist sweep` write them"
    if not path.is_dir():
        return f"{path} is a file; {expected}" + (
            f": write {str(path.parent)!r}" if (path.parent / "summary.json").exists() else ""
        )
    if open_runs := unfinished([path]):
        return f"{path} holds no finished run: {open_runs[0]} has no summary.json yet; {expected}"
    if path.parent.name == "retimed":
        return f"{path} is a re-timing of a run; {expected}: write {str(path.parent.parent)!r}"
    return f"{path} holds no run; {expected}"


def _damaged(path: Path, why: object) -> InputError:
    return InputError(f"cannot read {path}: {why}; run it again, or leave this folder out")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    if not isinstance(value, dict):
        raise _damaged(path, f"expected an object, got {type(value).__name__}")
    return value


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise _damaged(path, error) from error
    if not isinstance(value, dict):
        raise _damaged(path, f"expected keys and values, got {type(value).__name__}")
    return value


def _read_table(path: Path, columns: Sequence[str] | None = None) -> Any:
    try:
        # One file, not a dataset: folder names such as ``lr=0.1`` must not turn into partition columns.
        with pyarrow.parquet.ParquetFile(path) as file:
            if missing := set(columns or ()) - set(file.schema_arrow.names):
                raise _damaged(path, _lacks(missing))
            return file.read(columns=None if columns is None else list(columns))
    except (OSError, pyarrow.ArrowException) as error:
        raise _damaged(path, error) from error


def _read_steps(path: Path) -> dict[str, Column]:
    table = _read_table(path)
    if missing := set(STEP_COLUMNS) - set(LATER_COLUMNS) - set(table.column_names):
        raise _damaged(path, _lacks(missing))
    if table.num_rows == 0:
        raise _damaged(path, "it has no steps")
    unmeasured = np.full(table.num_rows, np.nan)
    return {name: _column(table, name) if name in table.column_names else unmeasured for name in STEP_COLUMNS}


def _lacks(columns: set[str]) -> str:
    return f"it lacks the columns {', '.join(sorted(columns))}"


def _column(table: Any, name: str) -> Column:
    column = pyarrow.compute.cast(table[name], pyarrow.float64())
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float64)


def _is_number(kind: Any) -> bool:
    return bool(pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind))


# --- names -------------------------------------------------------------------------------------------------------

_PROPER = {"sgd": "SGD", "adamw": "AdamW", "muon": "Muon", "dion": "Dion", "orth_dion": "Orth-Dion"}


def settings_that_differ(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Return scenario keys (``optimizer.lr``) whose values differ, with a value per run; ``name`` is no setting."""
    flat = [_flat(run.scenario) for run in runs]
    keys = sorted({key for one in flat for key in one} - {"name"}, key=_by_interest)
    values = {key: [one.get(key) for one in flat] for key in keys}
    return {key: row for key, row in values.items() if any(value != row[0] for value in row)}


def labels(runs: Sequence[Run]) -> list[str]:
    """Name each run by its optimizer and, among runs of one optimizer, by the fewest settings that tell them apart.

    Runs with equal settings get their folder's name as well.
    """
    names = [_optimizer_label(run) for run in runs]
    result = list(names)
    for name in dict.fromkeys(names):
        group = [index for index, other in enumerate(names) if other == name]
        members = [runs[index] for index in group]
        chosen = _distinguishing(settings_that_differ(members), len(members))
        for at, index in enumerate(group):
            words = [f"{key.rpartition('.')[2]}={_short(key, row[at])}" for key, row in chosen.items()]
            result[index] = " ".join([name, *words])
    doubled = {label for label in result if result.count(label) > 1}
    return [
        f"{label} ({run.path.resolve().name})" if label in doubled else label
        for label, run in zip(result, runs, strict=True)
    ]


def _distinguishing(differ: dict[str, list[Any]], members: int) -> dict[str, list[Any]]:
    chosen: dict[str, list[Any]] = {}
    distinct = 1
    while distinct < members:
        # The most telling key next; ``max`` keeps the earliest, so ties go to the more interesting key.
        best = max(differ, key=lambda key: _distinct([*chosen.values(), differ[key]]), default=None)
        if best is None or _distinct([*chosen.values(), differ[best]]) <= distinct:
            break
        chosen[best] = differ[best]
        distinct = _distinct(list(chosen.values()))
    return chosen


def _distinct(rows: list[list[Any]]) -> int:
    return len({repr(combination) for combination in zip(*rows, strict=True)})


def _by_interest(key: str) -> tuple[int, str]:
    order = ("optimizer.lr", "optimizer.", "mesh.", "wire.", "schedule.", "workload.", "network.", "compute.", "seed")
    return next((place for place, start in enumerate(order) if key.startswith(start)), len(order)), key


def _optimizer_label(run: Run) -> str:
    optimizer = run.scenario.get("optimizer")
    name = str(optimizer.get("name", "run") if isinstance(optimizer, dict) else optimizer or "run")
    return _PROPER.get(name, name.rpartition(":")[2])


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {f"{prefix}{key}": item}
    return flat


def _short(key: str, value: Any) -> str:
    if key == "network.bandwidth":
        return rate_label(parse_rate(value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def rate_label(bits_per_second: float) -> str:
    """Write a rate as people do.

    >>> rate_label(1e7), rate_label(2.5e9)
    ('10 Mbit/s', '2.5 Gbit/s')
    """
    for scale, unit in ((1e12, "Tbit/s"), (1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s")):
        if bits_per_second >= scale * 0.9995:
            return f"{bits_per_second / scale:.3g} {unit}"
    return f"{bits_per_second:.3g} bit/s"

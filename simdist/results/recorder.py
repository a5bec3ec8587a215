"""Writes run folders: steps, ledger, diagnostics, summary, environment, and the program that ``retime`` prices."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from simdist.communication.ledger import Ledger
from simdist.errors import InputError

if TYPE_CHECKING:
    import torch

STEPS = pa.schema(
    [
        ("step", pa.int64()),
        ("train_loss", pa.float64()),
        ("val_loss", pa.float64()),
        ("lr", pa.float64()),
        ("simulated_seconds", pa.float64()),
        ("compute_seconds", pa.float64()),
        ("exposed_comm_seconds", pa.float64()),
        ("hidden_comm_seconds", pa.float64()),
        ("sent_bytes_total", pa.int64()),
        ("sent_bytes_per_worker", pa.float64()),
        ("wall_seconds", pa.float64()),
    ]
)
LEDGER = pa.schema(
    [
        ("step", pa.int64()),
        ("op", pa.string()),
        ("purpose", pa.string()),
        ("tensor", pa.string()),
        ("axis", pa.string()),
        ("group_size", pa.int64()),
        ("groups", pa.int64()),
        ("payload_bytes", pa.int64()),
        ("sent_bytes_per_worker", pa.float64()),
        ("sent_bytes_total", pa.int64()),
        ("codec", pa.string()),
        ("plan", pa.string()),
        ("start_seconds", pa.float64()),
        ("end_seconds", pa.float64()),
    ]
)
#: columns that say how a step's time is spent: the first two add up to it, the third is part of the first
SPLIT = ("compute_seconds", "exposed_comm_seconds", "hidden_comm_seconds")
#: packages whose versions a result may depend on
PACKAGES = ("simdist", "torch", "numpy", "ray", "pyarrow", "networkx", "pydantic")


class Recorder:
    """Collects the rows of one run and writes its folder.

    Args:
        folder: belongs to the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._steps: list[dict[str, Any]] = []
        self._diagnostics: list[dict[str, Any]] = []

    def begin(self, scenario_yaml: str, environment: Mapping[str, Any]) -> None:
        """Write the files that say what is run, and where.

        Args:
            scenario_yaml: the resolved scenario, as ``scenario.yaml`` stores it.
            environment: seed and data hash; versions and host are added here.
        """
        (self.folder / "scenario.yaml").write_text(scenario_yaml, encoding="utf-8")
        write_json(self.folder / "environment.json", {**environment, **describe_machine()})

    def begin_again(self) -> None:
        """Add to ``environment.json`` where the run goes on, as an item of ``resumed``."""
        path = self.folder / "environment.json"
        found = json.loads(path.read_text(encoding="utf-8"))
        write_json(path, {**found, "resumed": [*found.get("resumed", []), describe_machine()]})

    @property
    def steps(self) -> list[dict[str, Any]]:
        return self._steps

    @property
    def diagnostic_rows(self) -> list[dict[str, Any]]:
        return self._diagnostics

    def refill(self, steps: Iterable[Mapping[str, Any]], diagnostics: Iterable[Mapping[str, Any]]) -> None:
        """Put other rows in place of those so far."""
        self._steps = [dict(row) for row in steps]
        self._diagnostics = [dict(row) for row in diagnostics]

    def step(self, row: Mapping[str, Any]) -> None:
        """Note one row of ``steps.parquet``; missing columns are null."""
        self._steps.append({name: row.get(name) for name in STEPS.names})

    def diagnostics(self, step: int, rows: list[dict[str, Any]]) -> None:
        """Note rows of ``diagnostics.parquet``; columns are whatever the rules offer."""
        self._diagnostics.extend({"step": step, **row} for row in rows)

    def write_tables(self, ledger: Ledger) -> None:
        """Write the Parquet files with all rows so far."""
        write_steps(self.folder / "steps.parquet", self._steps)
        write_ledger(self.folder / "ledger.parquet", ledger)
        write_diagnostics(self.folder / "diagnostics.parquet", self._diagnostics)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        write_json(self.folder / "summary.json", summary)


def write_steps(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write ``steps.parquet``."""
    pq.write_table(pa.Table.from_pylist(rows, schema=STEPS), path)


def write_diagnostics(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write ``diagnostics.parquet``; its columns are all that any row has."""
    columns = dict.fromkeys(name for row in rows for name in row)
    table = {name: [row.get(name) for row in rows] for name in columns} or {"step": []}
    pq.write_table(pa.table(table), path)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a Parquet file; what a row lacks is None.

    Raises:
        InputError: when it is no Parquet file.
    """
    try:
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    except pa.ArrowInvalid as error:
        raise InputError(f"{path} is damaged ({error})") from error
    return rows


def write_ledger(path: Path, ledger: Ledger) -> None:
    """Write ``ledger.parquet``."""
    pq.write_table(pa.table(ledger.columns(), schema=LEDGER), path)


def mean_times(columns: Mapping[str, Sequence[float | None]]) -> dict[str, float | None]:
    """Return how a step's seconds are spent, on average over the columns of ``steps.parquet``, for ``summary.json``.

    None where a column was not measured in every step.
    """
    return {f"{name}_per_step": _mean(columns[name]) for name in SPLIT}


def _mean(values: Sequence[float | None]) -> float | None:
    measured = [value for value in values if value is not None]
    if not values or len(measured) < len(values):
        return None
    return math.fsum(measured) / len(measured)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    os.replace(draft, path)


def params_sha256(params: Mapping[str, torch.Tensor]) -> str:
    """Hash parameters in name order, as float32 little-endian bytes."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(params):
        array = params[name].detach().to("cpu", torch.float32).contiguous().numpy()
        digest.update(array.astype("<f4", copy=False).tobytes())
    return digest.hexdigest()


def describe_machine() -> dict[str, Any]:
    """Return versions, host and git revision, for ``environment.json``."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "versions": {"python": platform.python_version(), **versions},
        "git_revision": _git_revision(),
        "host": {
            "name": platform.node(),
            "platform": platform.platform(),
            "processor": platform.machine(),
            "cpus": os.cpu_count(),
        },
        "command": sys.argv,
    }


def _git_revision() -> str | None:
    """Return the revision of the source that is running, with ``+`` where it has been changed; None if unknown."""
    here = Path(__file__).resolve().parent
    try:
        found = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()

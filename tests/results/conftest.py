"""Run folders with closed-form curves, so that every number that results compute has a known answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import yaml

COMPUTE = {"device": "A100", "mfu": 0.4}
WriteRun = Callable[..., Path]


def loss(step: np.ndarray, rate: float, floor: float = 1.0) -> np.ndarray:
    """Falls from ``floor + 4`` towards ``floor``: 4 exp(-rate step) + floor."""
    return floor + 4.0 * np.exp(-rate * step)


def steps_table(
    steps: int, rate: float, floor: float, sent: float, flop_seconds: float, bandwidth: float, val_every: int
) -> pyarrow.Table:
    """Step time = flop_seconds + 8 sent / bandwidth, nothing overlapped."""
    step = np.arange(1, steps + 1)
    losses = loss(step, rate, floor)
    waiting = 8 * sent / bandwidth
    measured = (step % val_every == 0) if val_every else np.zeros(steps, dtype=bool)
    return pyarrow.table(
        {
            "step": step,
            "train_loss": losses + 0.03 * np.sin(2.3 * step),
            "val_loss": pyarrow.array([float(x) if keep else None for x, keep in zip(losses, measured, strict=True)]),
            "lr": np.full(steps, 0.01),
            "simulated_seconds": step * (flop_seconds + waiting),
            "compute_seconds": np.full(steps, flop_seconds),
            "exposed_comm_seconds": np.full(steps, waiting),
            "hidden_comm_seconds": np.full(steps, flop_seconds / 4),
            "sent_bytes_total": (step * sent * 8).astype(np.int64),
            "sent_bytes_per_worker": np.full(steps, int(sent)),
            "wall_seconds": step * 0.01,
        }
    )


def ledger_table(steps: int, rows: Sequence[tuple[str, str, str, int, int, int]]) -> pyarrow.Table:
    """Rows per step: (op, purpose, axis, group_size, groups, sent_bytes_per_worker)."""
    names = ("op", "purpose", "axis", "group_size", "groups", "sent_bytes_per_worker")
    columns: dict[str, list[Any]] = {name: [row[at] for row in rows] * steps for at, name in enumerate(names)}
    columns["sent_bytes_total"] = [row[3] * row[4] * row[5] for row in rows] * steps
    columns["step"] = [step for step in range(1, steps + 1) for _ in rows]
    return pyarrow.table(columns)


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """Return a function that writes a run folder; ``retimed`` lists bandwidths in bit/s."""

    def write(
        name: str = "run",
        *,
        optimizer: str = "adamw",
        steps: int = 200,
        rate: float = 0.02,
        floor: float = 1.0,
        sent: float = 1e6,
        flop_seconds: float = 0.01,
        bandwidth: float = 1e8,
        retimed: Sequence[float] = (),
        val_every: int = 10,
        nu: float | None = None,
        drift: float | None = None,
        settings: Mapping[str, Any] | None = None,
        network: Mapping[str, Any] | None = None,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        priced = {"topology": "star", "latency": 0.001, "collectives": "ring", "mode": "simulated", **(network or {})}

        def table(speed: float) -> pyarrow.Table:
            return steps_table(steps, rate, floor, sent, flop_seconds, speed, val_every)

        scenario: dict[str, Any] = {
            "seed": 0,
            "steps": steps,
            "name": name,
            "workload": {"name": "byte_gpt"},
            "mesh": {"replicas": 2, "shards": 4},
            "optimizer": {"name": optimizer, "lr": 0.01},
            "network": {**priced, "bandwidth": bandwidth},
            "compute": COMPUTE,
        }
        for key, value in (settings or {}).items():
            section, _, leaf = key.rpartition(".")
            (scenario.setdefault(section, {}) if section else scenario)[leaf] = value
        (folder / "scenario.yaml").write_text(yaml.safe_dump(scenario))
        own = table(bandwidth)
        summary = {
            "workers": 8,
            "steps": steps,
            "final_train_loss": own["train_loss"][-1].as_py(),
            "final_val_loss": own["val_loss"][-1].as_py(),
            "simulated_seconds": own["simulated_seconds"][-1].as_py(),
            "sent_bytes_total": own["sent_bytes_total"][-1].as_py(),
            "sent_bytes_per_worker_per_step": sent,
            "engine": "inline",
            "params_sha256": "00",
            "ledger_sha256": "00",
        }
        (folder / "summary.json").write_text(json.dumps(summary))
        (folder / "environment.json").write_text(json.dumps({"seed": 0, "versions": {"torch": "2.13"}}))
        pyarrow.parquet.write_table(own, folder / "steps.parquet")
        gather = ("all_gather", "param_gather", "shards", 4, 2, int(sent * 0.45))
        reduce = ("reduce_scatter", "grad_reduce", "shards", 4, 2, int(sent * 0.25))
        across = ("all_reduce", "grad_reduce", "replicas", 2, 4, int(sent * 0.2))
        update = ("all_gather", "optimizer", "shards", 4, 2, int(sent * 0.1))
        rows = ledger_table(steps, [gather, reduce, across, update])
        pyarrow.parquet.write_table(rows, folder / "ledger.parquet")
        if nu is not None:
            logged = [step for step in range(5, steps + 1, 5) for _ in range(3)]
            values = [nu * (1 + 0.1 * matrix) for _ in range(5, steps + 1, 5) for matrix in range(3)]
            names = [f"block{matrix}" for _ in range(5, steps + 1, 5) for matrix in range(3)]
            columns: dict[str, Any] = {"step": logged, "matrix": names, "nu": values}
            if drift is not None:
                columns["state_drift"] = [drift * step for step in logged]
            diagnostics = pyarrow.table(columns)
            pyarrow.parquet.write_table(diagnostics, folder / "diagnostics.parquet")
        for speed in retimed:
            at = folder / "retimed" / f"bandwidth={speed:g}"
            at.mkdir(parents=True)
            saved = {"network": {**priced, "bandwidth": speed}, "compute": COMPUTE}
            (at / "network.yaml").write_text(yaml.safe_dump(saved))
            pyarrow.parquet.write_table(table(speed), at / "steps.parquet")
            (at / "summary.json").write_text(json.dumps(summary))
        return folder

    return write

"""The decoder with 124 M parameters, computed in bfloat16 (mixed precision: parameters and updates stay float32).

simdist run analysis/benchmarks/sides/autocast.py --set engine.device=cuda
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from simdist import Scenario
from simdist.execution.settings import EngineSettings
from simdist.network import Star
from simdist.optimizers import AdamW
from simdist.scenario import MeshSettings
from simdist.workloads import ByteGPT, Task, Workload


class Autocast(Task):
    """A task whose loss is computed under ``torch.autocast`` to bfloat16."""

    def __init__(self, inner: Task, device: str) -> None:
        self._inner, self._device = inner, device
        self.units = inner.units
        self.data_hash = inner.data_hash
        self.samples_per_step = inner.samples_per_step
        self.validation: Sequence[Any] = inner.validation

    def initial(self) -> dict[str, Tensor]:
        return self._inner.initial()

    def batch(self, worker: int, step: int) -> tuple[Tensor, ...]:
        return self._inner.batch(worker, step)

    def loss(self, params: dict[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        with torch.autocast(self._device, torch.bfloat16):
            return self._inner.loss(params, batch)


class AutocastDecoder(Workload):
    """:class:`simdist.workloads.ByteGPT` in bfloat16, with these shapes."""

    name: str = "autocast_decoder"
    width: int = 768
    depth: int = 12
    heads: int = 12
    context: int = 512
    # beside attention's 2.4 M numbers a block: 124 M in all, though the vocabulary is bytes
    hidden: int = 3456
    batch: int = 8

    def build(self, seed: int, dtype: torch.dtype, device: torch.device) -> Task:
        shape = {name: getattr(self, name) for name in ("width", "depth", "heads", "context", "hidden", "batch")}
        task = ByteGPT(**shape, validation_batches=1).build(seed, dtype, device)
        return Autocast(task, device.type)


def scenario() -> Scenario:
    return Scenario(
        name="benchmark-124m",
        steps=9,
        workload=AutocastDecoder(),
        mesh=MeshSettings(replicas=1, shards=8),
        optimizer=AdamW(lr=1e-3),
        network=Star(bandwidth="10Gbit/s", latency="20us"),
        # two workers' batches in one pass: 16 sequences, as in the plain loop
        engine=EngineSettings(name="stacked", chunk=2),
    )

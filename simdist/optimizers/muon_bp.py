"""MuonBP (Khaled et al., arXiv 2510.16981; card 5): Muon on each worker's own rows, and in full every so many steps.

A block step orthogonalises the rows that a worker holds as a matrix of their own and sends nothing; a full step is
Muon's, with the bytes of its form (:mod:`simdist.optimizers.whole_matrices`). Over ``period`` steps that is Muon's
traffic divided by ``period``. How many blocks there are is the mesh's number of shards: the rule computes other values
on other meshes, and without shards both kinds of step are full in value.

Taken from the abstract and a secondary formula page (the paper itself was not read): the two kinds of step, full at
t mod P = 0 from t = 0, momentum as a sum, two learning rates, a scale by the dimensions of what is orthogonalised.
Not confirmed for us: whether its experiments use Nesterov momentum, and which rate weight decay takes on block steps
(here ``lr`` on all steps, so that decay does not see the period).
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from simdist.optimizers.muon import MuonBase
from simdist.optimizers.rule import Stack, optimizers
from simdist.optimizers.spectral import Scale, update_scale
from simdist.program import Worker
from simdist.settings import PositiveFloat, PositiveInt


class MuonBPState(NamedTuple):
    """``momentum``: this worker's rows; ``step``: how many steps were taken (a scalar tensor)."""

    momentum: Tensor
    step: Tensor


@optimizers.register("muon_bp")
class MuonBP(MuonBase):
    """Muon on each shard's own rows, on whole matrices every ``period`` steps (arXiv 2510.16981).

    ``lr`` is the learning rate of full steps, ``block_lr`` that of block steps (None: the same); the schedule scales
    both alike. ``scale`` is taken at the dimensions of what is orthogonalised: m x n in full steps, the
    ``ceil(m / shards)`` rows x n of a shard in block steps (also for a last shard with fewer rows).
    """

    name: str = "muon_bp"
    convention: Literal["sum", "ema"] = "sum"
    nesterov: bool = False
    scale: Scale = "rms"
    period: PositiveInt = 5
    block_lr: PositiveFloat | None = None

    def init(self, stack: Stack, x: Tensor, worker: Worker) -> MuonBPState:
        return MuonBPState(torch.zeros_like(x), torch.zeros((), dtype=torch.int64))

    async def update(
        self, stack: Stack, x: Tensor, grad: Tensor, state: Any, lr: float, worker: Worker
    ) -> tuple[Tensor, MuonBPState]:
        momentum, direction = self.accumulate(state.momentum, grad)
        m, n = stack.shape
        rate = lr
        if int(state.step) % self.period == 0:
            orthogonal = await self.whole_update(stack, direction, worker)
        else:
            m = stack.rows
            rate *= 1.0 if self.block_lr is None else self.block_lr / self.lr
            orthogonal = await self.orthogonalise(direction, worker)
        step = rate * update_scale(self.scale, m, n, min(m, n))
        return self.decayed(stack, x, lr) - step * orthogonal, MuonBPState(momentum, state.step + 1)

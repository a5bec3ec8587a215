"""Muon (Jordan et al. 2024): momentum, orthogonalised by Newton-Schulz; two distributed forms (card 5).

Shapes, with c = length of the stack, m x n the matrices, rows = ceil(m / shards):

- ``owner``: each member of the shard group orthogonalises c / shards whole matrices. An all-to-all carries the
  momentum rows there and another carries the result back: ``2 (F-1)/F * c rows n`` numbers per worker, that is
  ``2 (F-1)/F^2 * m n`` a matrix. Without shards (DDP) the replicas share the work, since each holds the averaged
  momentum already: only the results are all-gathered, ``(W-1)/W * m n`` a matrix.
- ``gather``: every worker all-gathers the momentum over its shards, ``(F-1)/F * m n``, and repeats the work; nothing
  goes back. Without shards nothing travels at all: this is the replicated form of DDP.

Under HSDP either happens inside the shard group, and replicas repeat it.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from simdist.linalg.newton_schulz import CoefficientSet, newton_schulz, newton_schulz_flops
from simdist.optimizers.rule import Decay, MeshShape, Stack, optimizers
from simdist.optimizers.spectral import Scale, Spectral, update_scale
from simdist.program import Worker
from simdist.settings import PositiveInt


class MuonState(NamedTuple):
    """``momentum``: running sum or mean of gradients, this worker's rows."""

    momentum: Tensor


@optimizers.register("muon")
class Muon(Spectral):
    """Momentum orthogonalised by Newton-Schulz, on hidden matrices; AdamW elsewhere.

    ``M <- mu M + G`` (``convention="sum"``: microsoft, Moonlight) or ``mu M + (1-mu) G`` (``"ema"``: Jordan). With
    ``nesterov`` the direction is ``mu M`` plus the new gradient's term once more. ``X <- (1 - lr wd) X - lr scale
    NS(direction)``. The defaults are Jordan's. ``ns_dtype="bfloat16"`` iterates in the references' precision.
    """

    name: str = "muon"
    mu: Decay = 0.95
    convention: Literal["sum", "ema"] = "ema"
    nesterov: bool = True
    coefficients: CoefficientSet = "jordan"
    ns_steps: PositiveInt = 5
    ns_dtype: Literal["same", "bfloat16"] = "same"
    scale: Scale = "spectral_clipped"
    form: Literal["owner", "gather"] = "owner"

    def multiple(self, mesh: MeshShape) -> int:
        return mesh.owners if self.form == "owner" else 1

    def init(self, stack: Stack, x: Tensor, worker: Worker) -> MuonState:
        return MuonState(torch.zeros_like(x))

    async def update(
        self, stack: Stack, x: Tensor, grad: Tensor, state: Any, lr: float, worker: Worker
    ) -> tuple[Tensor, MuonState]:
        new = grad if self.convention == "sum" else (1 - self.mu) * grad
        momentum = self.mu * state.momentum + new
        direction = new + self.mu * momentum if self.nesterov else momentum
        orthogonal = await (self._by_owners if self.form == "owner" else self._by_all)(stack, direction, worker)
        m, n = stack.shape
        step = lr * update_scale(self.scale, m, n, min(m, n))
        return self.decayed(stack, x, lr) - step * orthogonal, MuonState(momentum)

    async def _by_owners(self, stack: Stack, direction: Tensor, worker: Worker) -> Tensor:
        shards, replicas = worker.mesh.shards, worker.mesh.replicas
        if shards.size > 1:
            whole = await shards.all_to_all(direction, split_dim=-3, concat_dim=-2, part="momentum")
            result = await self._orthogonalise(stack, whole, worker)
            update: Tensor = await shards.all_to_all(result, split_dim=-2, concat_dim=-3, part="update")
        else:
            result = await self._orthogonalise(stack, replicas.share(direction, dim=-3), worker)
            update = await replicas.all_gather(result, dim=-3, part="update")
        return update

    async def _by_all(self, stack: Stack, direction: Tensor, worker: Worker) -> Tensor:
        shards = worker.mesh.shards
        whole = await shards.all_gather(direction, dim=-2, part="momentum")
        update: Tensor = shards.share(await self._orthogonalise(stack, whole, worker), dim=-2)
        return update

    async def _orthogonalise(self, stack: Stack, whole: Tensor, worker: Worker) -> Tensor:
        m, n = stack.shape
        await worker.compute(whole.shape[-3] * newton_schulz_flops(m, n, self.ns_steps), "newton_schulz")
        dtype = torch.bfloat16 if self.ns_dtype == "bfloat16" else None
        # Without its padding rows, so that every mesh iterates the same matrix in the same orientation.
        result = newton_schulz(whole[..., :m, :], self.coefficients, self.ns_steps, dtype)
        return pad(result, (0, 0, 0, whole.shape[-2] - m))

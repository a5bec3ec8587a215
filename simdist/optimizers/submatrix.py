"""What Dion2 and Dion3 share: only the largest rows or columns of the momentum are orthogonalised (card 4).

Shapes, with c = length of the stack, m x n the matrices, F shards of rows = ceil(m / F) each:

    M <- M + G                         [c, rows, n]
    I = the slices of M with the largest L1 norms, a fraction of them, at least one
    O = orth(M[I]);  M[I] <- keep M[I];  X <- (1 - lr wd) X;  X[I] <- X[I] - lr scale(m, n) O

What is not chosen stays in M, which is the error feedback. Where I is taken from:

- ``local``: every shard takes k = ceil(fraction rows) of its own rows, and their union F k x n is orthogonalised. Only
  these rows travel: in the form ``owner`` ``2 (F-1)/F * c k n`` numbers per worker. Which rows these are depends on F.
- ``global``: whole matrices are collected and the largest ceil(fraction m) slices taken there; the bytes are Muon's,
  and the result depends on the mesh no more than Muon's does. The mask I comes back as the rows of O that are not zero.

Without shards the two are the same: each worker chooses from whole matrices and, in the form ``owner``, orthogonalises
its share of them. What is all-gathered over R replicas are the k slices, ``(R-1)/R * c k n`` numbers (k m for columns).
Replicas see the same averaged gradient, choose alike, and under HSDP repeat the work of their shard group.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor

from simdist.linalg.newton_schulz import CoefficientSet, newton_schulz, newton_schulz_flops
from simdist.optimizers.rule import MeshShape, Stack
from simdist.optimizers.spectral import Scale, Spectral, update_scale
from simdist.optimizers.whole_matrices import Form, check_form, collect, hand_back, stack_multiple
from simdist.program import Worker
from simdist.settings import PositiveInt, Share


def _l1(x: Tensor) -> Tensor:
    return x.abs().sum(dim=-1)


def _largest(norms: Tensor, k: int) -> Tensor:
    """Return the places of the k largest of ``[..., rows]``, ascending, ``[..., k, 1]``; of equal ones the first."""
    return norms.sort(dim=-1, descending=True, stable=True).indices[..., :k].sort(dim=-1).values.unsqueeze(-1)


class Submatrix(Spectral):
    """Base of Dion2 and Dion3. ``fraction`` is the papers' alpha; ``scope`` is said in the module's docstring."""

    fraction: Share = 0.25
    scope: Literal["local", "global"] = "local"
    coefficients: CoefficientSet = "polar_express"
    ns_steps: PositiveInt = 5
    ns_dtype: Literal["same", "bfloat16"] = "same"
    scale: Scale = "spectral"
    form: Form = "owner"

    @property
    @abstractmethod
    def kept(self) -> float:
        """Return the factor on the chosen slices of the momentum after they were used."""

    @abstractmethod
    def takes_rows(self, stack: Stack) -> bool:
        """Return whether slices are rows; columns only without shards."""

    @abstractmethod
    async def finished(
        self, stack: Stack, orthogonal: Tensor, chosen: Tensor, state: Any, worker: Worker
    ) -> tuple[Tensor, Any]:
        """Return the direction of the step, and the state but for its field ``momentum``, which is replaced.

        ``orthogonal`` is this worker's rows ``[..., c, rows, n]``, zero outside of the chosen slices; ``chosen`` is
        true there (``[..., c, rows, 1]``, for columns ``[..., c, 1, n]``), and perhaps on padding rows.
        """

    def slices(self, size: int) -> int:
        """Return how many of ``size`` rows or columns are chosen: ceil(fraction size), at least one.

        The subtracted bit forgives products such as 0.07 * 100 = 7.000000000000001.
        """
        return max(1, math.ceil(self.fraction * size - 1e-9))

    def multiple(self, mesh: MeshShape) -> int:
        return stack_multiple(self.form, mesh)

    def check(self, shape: tuple[int, ...], name: str, mesh: MeshShape) -> None:
        check_form(self.form, mesh)

    async def update(
        self, stack: Stack, x: Tensor, grad: Tensor, state: Any, lr: float, worker: Worker
    ) -> tuple[Tensor, Any]:
        m, n = stack.shape
        # the sum, then the slices' L1 norms
        await worker.compute(3.0 * stack.local_numel, "momentum")
        momentum = state.momentum + grad
        if self.scope == "global" and stack.mesh.shards > 1:
            orthogonal, chosen = await self._from_whole(stack, momentum, worker)
            taken = self.slices(m)
        else:
            orthogonal, chosen = await self._from_own(stack, momentum, worker)
            taken = stack.mesh.shards * self.slices(stack.rows if self.takes_rows(stack) else n)
        direction, state = await self.finished(stack, orthogonal, chosen, state, worker)
        step = lr * update_scale(self.scale, m, n, min(m, n, taken))
        # the chosen slices' decay, and the step
        await worker.compute(3.0 * stack.local_numel, "update")
        momentum = torch.where(chosen, self.kept * momentum, momentum)
        return self.decayed(stack, x, lr) - step * direction, state._replace(momentum=momentum)

    async def _from_own(self, stack: Stack, momentum: Tensor, worker: Worker) -> tuple[Tensor, Tensor]:
        """Choose from the rows that this worker holds, and send only these."""
        by_rows = self.takes_rows(stack)
        assert by_rows or stack.mesh.shards == 1, "columns are chosen from whole matrices"
        if not by_rows:
            # work on M^T, whose polar factor is the transposed one
            momentum = momentum.mT
        k = self.slices(momentum.shape[-2])
        # Padding rows are zeros behind all others, so that they are taken only to fill up k, and travel as zeros.
        places = _largest(_l1(momentum), k)
        rows = places.expand(*places.shape[:-1], momentum.shape[-1])
        whole = await collect(self.form, momentum.gather(-2, rows), worker, part="momentum")
        result = await self._orthogonalise(whole, worker)
        mine = await hand_back(self.form, result, worker, rows=k, part="update")
        orthogonal = torch.zeros_like(momentum).scatter(-2, rows, mine)
        chosen = torch.zeros_like(momentum[..., :1], dtype=torch.bool).scatter(-2, places, True)
        return (orthogonal, chosen) if by_rows else (orthogonal.mT, chosen.mT)

    async def _from_whole(self, stack: Stack, momentum: Tensor, worker: Worker) -> tuple[Tensor, Tensor]:
        """Choose from whole matrices, on whoever holds them."""
        whole = await collect(self.form, momentum, worker, rows=stack.shape[0], part="momentum")
        places = _largest(_l1(whole), self.slices(stack.shape[0]))
        rows = places.expand(*places.shape[:-1], whole.shape[-1])
        result = await self._orthogonalise(whole.gather(-2, rows), worker)
        scattered = torch.zeros_like(whole).scatter(-2, rows, result)
        orthogonal = await hand_back(self.form, scattered, worker, rows=stack.rows, part="update")
        # a chosen row of zeros is not marked, and there is nothing in it to decay
        return orthogonal, (orthogonal != 0).any(dim=-1, keepdim=True)

    async def _orthogonalise(self, chosen: Tensor, worker: Worker) -> Tensor:
        count, k, n = chosen.shape[-3:]
        await worker.compute(count * newton_schulz_flops(k, n, self.ns_steps), "newton_schulz")
        dtype = torch.bfloat16 if self.ns_dtype == "bfloat16" else None
        return newton_schulz(chosen, self.coefficients, self.ns_steps, dtype)

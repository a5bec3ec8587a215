"""The low-rank machinery that Dion and Orth-Dion share: a warm power step with error feedback (cards 1 and 3).

Orientation: we work on M^T on every mesh, so that FSDP's shards of dimension 0 are the contracted side (card 3). With
the matrix M m x n, this worker's rows of it ``[..., c, rows, n]``, rank r, and c matrices in a stack:

    P = M^T V, summed over shards      [c, n, r]
    U = orth(P)                        [c, n, r]    each owner orthonormalises whole matrices
    W = M U                            [c, rows, r]
    Vbar = right factor of W           [c, rows, r] the only line in which the two rules differ
    X <- (1 - lr wd) X - lr scale Vbar U^T

microsoft/dion transposes unsharded matrices with m < n instead, so that the long side is orthonormalised. Bytes are the
same either way ((m+n) r numbers), and one orientation lets all meshes agree with one judge.

Owners are dealt out along the stack: shards when there are any, else replicas. What travels, sent per worker and
matrix, b bytes a factor number, ring(k) = (k-1)/k:

- shards: P reduce-scattered and U all-gathered, ``2 ring(F) n r b``, and what the right factor needs;
- replicas, compressed: the owner's P and this worker's W are averaged, ``2 ring(R) (n/F + m/F) r b``, in place of the
  gradient's all-reduce. Without shards P is reduce-scattered and U all-gathered, which is the same sum;
- replicas, not compressed and without shards: the gradient arrives averaged, every replica takes its share of
  P without communication, and U is all-gathered, ``ring(R) n r b``.

With compressed replicas each keeps its own buffer: their mean is exact, but deviations from it never decay (card 3).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import AfterValidator, model_validator
from torch import Tensor

from simdist.errors import InputError
from simdist.linalg.orthonormalize import orthonormalize
from simdist.optimizers.diagnostics import observe_low_rank
from simdist.optimizers.right_factor import RIGHT_FACTORS, RightFactorName, Setting, qr_flops
from simdist.optimizers.rule import MeshShape, Stack
from simdist.optimizers.spectral import Spectral, update_scale
from simdist.program import Worker
from simdist.program.random import normal
from simdist.settings import Fraction, PositiveInt


def _above_zero(value: float) -> float:
    if value <= 0:
        raise ValueError(f"got {value!r}; expected a fraction above 0, at most 1")
    return value


class LowRankState(NamedTuple):
    """``buffer``: error feedback, this worker's rows [c, rows, n]; ``basis``: V, this worker's rows [c, rows, r]."""

    buffer: Tensor
    basis: Tensor


class Plan(NamedTuple):
    """How one rule's step differs: right factor, passes, and ``buffer <- keep M - clear W U^T``."""

    right_factor: RightFactorName
    gram_passes: int
    keep: float
    clear: float


class LowRank(Spectral):
    """Base of Dion and Orth-Dion; give either ``rank`` or ``rank_fraction`` (of the shorter side of each matrix).

    A fraction is rounded up to a multiple of ``rank_multiple`` and cut to the matrix; a ``rank`` larger than the
    shorter side of any hidden matrix is refused.
    """

    rank: PositiveInt | None = None
    rank_fraction: Annotated[Fraction, AfterValidator(_above_zero)] | None = None
    rank_multiple: PositiveInt = 1

    @model_validator(mode="after")
    def _one_rank(self) -> LowRank:
        if (self.rank is None) == (self.rank_fraction is None):
            got = "neither" if self.rank is None else "both"
            raise ValueError(f"got {got} of rank and rank_fraction; expected one: write rank=16, or rank_fraction=0.25")
        return self

    @abstractmethod
    def plan(self) -> Plan:
        """Return what sets this rule apart."""

    @abstractmethod
    def start(self, gaussian: Tensor) -> Tensor:
        """Return the first V of a matrix (m x r) from a standard Gaussian of that shape."""

    def low_rank(self, shape: tuple[int, ...]) -> int:
        """Return r for a matrix of this full shape."""
        m, n = shape
        if self.rank_fraction is None:
            assert self.rank is not None
            return self.rank
        # the subtracted bit forgives products such as 0.1 * 30 = 3.0000000000000004
        multiples = math.ceil(self.rank_fraction * min(m, n) / self.rank_multiple - 1e-9)
        return min(multiples * self.rank_multiple, m, n)

    def check(self, shape: tuple[int, ...], name: str, mesh: MeshShape) -> None:
        low_rank, most = self.low_rank(shape), min(shape)
        if low_rank > most:
            raise InputError(
                f"got optimizer.rank {low_rank}, but the matrix {name!r} is {shape[0]} x {shape[1]}; expected at most "
                f"{most}, or write optimizer.rank_fraction (0.25, say) for a rank that follows the matrix"
            )

    def multiple(self, mesh: MeshShape) -> int:
        return mesh.owners

    def syncs_replicas(self, shape: tuple[int, ...], mesh: MeshShape) -> bool:
        """Factors travel instead of the gradient where they are smaller, strictly (as microsoft/dion decides)."""
        m, n = shape
        smaller = (m + n) * self.low_rank(shape) < m * n
        return mesh.replicas > 1 and smaller and (self.rank_fraction is None or self.rank_fraction < 1)

    def init(self, stack: Stack, x: Tensor, worker: Worker) -> LowRankState:
        m = stack.shape[0]
        low_rank = self.low_rank(stack.shape)
        whole = x.new_zeros((stack.count, stack.mesh.shards * stack.rows, low_rank))
        for i, name in enumerate(stack.names):
            whole[i, :m] = self.start(normal((m, low_rank), worker.seed, f"V/{name}")).to(whole)
        # as many leading worker axes as x has, each of size one: all workers start from the same V
        whole = whole.reshape((1,) * (x.ndim - 3) + whole.shape)
        return LowRankState(torch.zeros_like(x), worker.mesh.shards.share(whole, dim=-2))

    async def update(
        self, stack: Stack, x: Tensor, grad: Tensor, state: Any, lr: float, worker: Worker
    ) -> tuple[Tensor, LowRankState]:
        (m, n), low_rank, plan = stack.shape, self.low_rank(stack.shape), self.plan()
        replicas, shards = worker.mesh.replicas, worker.mesh.shards
        compressed = self.syncs_replicas(stack.shape, stack.mesh)
        product = 2.0 * stack.count * stack.rows * n * low_rank  # operations of one product with M or with factors

        gathered = grad + state.buffer
        await worker.compute(product, "P")
        u = await self._left_factor(stack, gathered.mT @ state.basis, compressed, worker)
        await worker.compute(product, "W")
        w = gathered @ u
        if compressed:
            w = await replicas.mean(w, part="W")
        setting = Setting(m, n, shards, plan.gram_passes)
        right = RIGHT_FACTORS[plan.right_factor]
        # the right factor, then the products of error feedback and of the update
        await worker.compute(stack.count * right.flops(stack.rows, low_rank, setting) + 2 * product, "update")
        factor = await right.apply(w, state.basis, setting)

        captured = w @ u.mT
        buffer = plan.keep * gathered - plan.clear * captured
        step = lr * update_scale(self.scale, m, n, low_rank)
        new = self.decayed(stack, x, lr) - step * (factor.update @ u.mT)
        if worker.measures:
            await observe_low_rank(stack, worker, grad, gathered, captured, buffer, w, factor.update)
        return new, LowRankState(buffer, factor.basis)

    async def _left_factor(self, stack: Stack, p: Tensor, compressed: bool, worker: Worker) -> Tensor:
        """Return U = orth(P) of every matrix; ``p`` is this worker's summand."""
        replicas, shards = worker.mesh.replicas, worker.mesh.shards
        owners = shards if shards.size > 1 else replicas
        if shards.size > 1:
            # reduce-scatter before averaging: one worker in F averages each P, as microsoft/dion does
            p = await shards.reduce_scatter(p, dim=-3, part="P")
            if compressed:
                p = await replicas.mean(p, part="P")
        elif compressed:
            p = await replicas.reduce_scatter(p, dim=-3, mean=True, part="P")
        else:
            p = replicas.share(p, dim=-3)
        await worker.compute(stack.count // owners.size * qr_flops(stack.shape[1], p.shape[-1]), "orth")
        u: Tensor = await owners.all_gather(orthonormalize(p), dim=-3, part="P")
        return u

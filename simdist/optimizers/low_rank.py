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

With compressed replicas each keeps its own buffer: their mean is exact, but deviations from it never decay (card 3),
unless a remedy is asked for (``average_buffers_every``, ``cleared``). The right factor ``exact_svd`` takes M itself: it
has no P, and its replicas exchange gradients.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Collection
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import model_validator
from torch import Tensor

from simdist.errors import InputError
from simdist.optimizers.diagnostics import observe_low_rank
from simdist.optimizers.left_factor import LeftFactorName, left_factor_flops, make_left_factor
from simdist.optimizers.right_factor import RIGHT_FACTORS, Factor, Oracle, RightFactorSettings, Setting
from simdist.optimizers.rule import MeshShape, Stack
from simdist.optimizers.sharded_qr import Place
from simdist.optimizers.spectral import Spectral, update_scale
from simdist.program import Worker
from simdist.program.random import normal
from simdist.settings import NaturalInt, PositiveInt, Share


class LowRankState(NamedTuple):
    """``buffer``: error feedback, this worker's rows [c, rows, n]; ``basis``: V, this worker's rows [c, rows, r].

    ``step`` counts the steps that were taken (a scalar, float64). A subclass with more to remember makes a NamedTuple
    with these three fields and its own; :class:`LowRank` changes only these, by ``_replace``.
    """

    buffer: Tensor
    basis: Tensor
    step: Tensor


class Plan(NamedTuple):
    """How one rule's step differs: its right factor, and ``buffer <- keep M - clear W U^T``."""

    right: RightFactorSettings
    keep: float
    clear: float


class Seen(NamedTuple):
    """What a step computed, for the hooks :meth:`LowRank.feed_back` and :meth:`LowRank.adapt`; this worker's rows.

    Attributes:
        gathered: M = G + buffer of before the step, ``[..., c, rows, n]``. With compressed replicas each has its own.
        u: U, whole on every worker, ``[..., c, n, r]``.
        w: W = M U, averaged over compressed replicas, ``[..., c, rows, r]``.
        vbar: the right factor of the update, like ``w``; zero columns where there is nothing to go by.
        captured: W U^T, ``[..., c, rows, n]``.
        squares: squared column norms of W summed over shards, ``[..., c, 1, r]``, where the right factor has them
            anyway, hence equal on all workers; None where they would have to be asked for.
        grad: G, like ``gathered``, for rules with :attr:`LowRank.keeps_gradient` and in steps that are measured.
    """

    gathered: Tensor
    u: Tensor
    w: Tensor
    vbar: Tensor
    captured: Tensor
    squares: Tensor | None
    grad: Tensor | None

    @property
    def gradient(self) -> Tensor:
        """``grad``, where it was kept."""
        assert self.grad is not None, "set keeps_gradient"
        return self.grad


class LowRank(Spectral):
    """Base of Dion and Orth-Dion; give either ``rank`` or ``rank_fraction`` (of the shorter side of each matrix).

    A fraction is rounded up to a multiple of ``rank_multiple`` and cut to the matrix; a ``rank`` larger than the
    shorter side of any hidden matrix is refused.

    - ``left_factor``: how U is made of P; ``householder``, or as microsoft/dion does: ``rcqr`` (randomised
      Cholesky-QR), ``cqr`` (the same for ``cqr_warmup`` steps, then Cholesky-QR alone). The products U Vbar^T are the
      same (:mod:`simdist.optimizers.left_factor`).
    - ``state_dtype``: ``bfloat16`` stores buffer and basis in that format; arithmetic stays the run's.
    - ``average_buffers_every``: compressed replicas average their buffers after every so many steps (part ``buffer``,
      ``2 ring(R) m n / F`` factor numbers); 0 is never, as published. Replicas that are not compressed have equal ones.
    - ``cleared``: which W U^T compressed replicas take out of their buffers: that of the ``average`` W, as published,
      whose mean is exact but lets each buffer wander off; or their ``own``, with the same mean and bounded deviations.

    Subclasses say what they are by :meth:`plan` and :meth:`start`. A rule whose rank changes overrides
    :meth:`feed_back` (what stays in the buffer) or :meth:`adapt` (the state after the step): the rank of a step is
    that of ``state.basis``, so that a basis with other columns is all it takes. Where the matrices of a stack differ
    in rank, trailing columns of a basis that are zero stay zero in U, W and Vbar, and their bytes are real.
    """

    #: whether hooks read the step's gradient, which is otherwise let go: with compressed replicas it is large
    keeps_gradient: ClassVar[bool] = False

    rank: PositiveInt | None = None
    rank_fraction: Share | None = None
    rank_multiple: PositiveInt = 1
    left_factor: LeftFactorName = "householder"
    cqr_warmup: NaturalInt = 150
    state_dtype: Literal["same", "bfloat16"] = "same"
    average_buffers_every: NaturalInt = 0
    cleared: Literal["average", "own"] = "average"

    @model_validator(mode="after")
    def _one_rank(self) -> LowRank:
        if (self.rank is None) == (self.rank_fraction is None):
            got = "neither" if self.rank is None else "both"
            raise ValueError(f"got {got} of rank and rank_fraction; expected one: write rank=16, or rank_fraction=0.25")
        return self

    @classmethod
    def to_plan(cls, given: Collection[str]) -> dict[str, Any]:
        ranks = {"rank", "rank_fraction"}
        known = ranks & set(given) or any(cls.model_fields[key].default is not None for key in ranks)
        return super().to_plan(given) | ({} if known else {"rank_fraction": 0.25})

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
        # the subtracted bit forgives products such as 0.07 * 100 = 7.000000000000001
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
        by_factors = not isinstance(RIGHT_FACTORS[self.plan().right.right_factor], Oracle)
        return mesh.replicas > 1 and smaller and by_factors and (self.rank_fraction is None or self.rank_fraction < 1)

    def init(self, stack: Stack, x: Tensor, worker: Worker) -> Any:
        m = stack.shape[0]
        low_rank = self.low_rank(stack.shape)
        whole = x.new_zeros((stack.count, stack.mesh.shards * stack.rows, low_rank))
        for i, name in enumerate(stack.names):
            whole[i, :m] = self.start(normal((m, low_rank), worker.seed, f"V/{name}")).to(whole)
        # as many leading worker axes as x has, each of size one: all workers start from the same V
        whole = whole.reshape((1,) * (x.ndim - 3) + whole.shape)
        step = torch.zeros((), dtype=torch.float64)
        dtype = torch.bfloat16 if self.state_dtype == "bfloat16" else x.dtype
        basis = worker.mesh.shards.share(whole, dim=-2)
        return LowRankState(torch.zeros_like(x, dtype=dtype), basis.to(dtype), step)

    async def feed_back(self, stack: Stack, worker: Worker, seen: Seen, state: Any) -> Any:
        """Return the state with the buffer of after the step: ``keep M - clear W U^T`` of :meth:`plan`.

        ``state`` is that of before the step. Called before parameters move; may communicate.
        """
        plan = self.plan()
        cleared = plan.clear * seen.captured
        if plan.keep == 1:
            return state._replace(buffer=seen.gathered - cleared)
        # in place: with compressed replicas this is every replica's own, and large
        kept = plan.keep * seen.gathered
        return state._replace(buffer=torch.sub(kept, cleared, out=kept))

    async def adapt(self, stack: Stack, worker: Worker, seen: Seen, state: Any) -> Any:
        """Return the state that the next step starts from; here ``state`` itself, which has the new buffer and basis.

        Called once, at the end of a step. A basis with another number of columns changes the rank of the next step;
        all workers must give it the same number.
        """
        return state

    def update_size(self, stack: Stack, state: Any) -> float | Tensor:
        """Return the factor on the learning rate, a number or ``[..., c, 1, 1]``; ``state`` is that of the step."""
        m, n = stack.shape
        return update_scale(self.scale, m, n, state.basis.shape[-1])

    def noted(self, stack: Stack, state: Any) -> dict[str, Tensor]:
        """Return more columns for the diagnostics, ``[..., c]`` each; ``state`` is that of the step."""
        return {}

    async def update(
        self, stack: Stack, x: Tensor, grad: Tensor, state: Any, lr: float, worker: Worker
    ) -> tuple[Tensor, Any]:
        # operations of one product with M or with factors
        product = 2.0 * stack.count * stack.rows * stack.shape[1] * state.basis.shape[-1]

        stored = state.buffer.dtype, state.basis.dtype
        state = state._replace(buffer=state.buffer.to(x.dtype), basis=state.basis.to(x.dtype))
        gathered = grad + state.buffer
        kept = grad if self.keeps_gradient or worker.measures else None
        del grad
        u, w, factor = await self._factors(stack, gathered, state, product, worker)
        # the products of error feedback and of the update
        await worker.compute(2 * product, "update")

        captured = (w if self.cleared == "average" else gathered @ u) @ u.mT
        seen = Seen(gathered, u, w, factor.update, captured, factor.squares, kept)
        size = lr * self.update_size(stack, state)
        new = self.decayed(stack, x, lr) - size * (factor.update @ u.mT)
        more = self.noted(stack, state)
        state = await self.feed_back(stack, worker, seen, state)
        if self._averages_now(stack, int(state.step) + 1):
            state = state._replace(buffer=await worker.mesh.replicas.mean(state.buffer, part="buffer"))
        if worker.measures:
            await observe_low_rank(stack, worker, seen, state.buffer, more)
        state = await self.adapt(stack, worker, seen, state._replace(basis=factor.basis, step=state.step + 1))
        return new, state._replace(buffer=state.buffer.to(stored[0]), basis=state.basis.to(stored[1]))

    def _averages_now(self, stack: Stack, step: int) -> bool:
        every = self.average_buffers_every
        return every > 0 and step % every == 0 and self.syncs_replicas(stack.shape, stack.mesh)

    async def _factors(
        self, stack: Stack, gathered: Tensor, state: Any, product: float, worker: Worker
    ) -> tuple[Tensor, Tensor, Factor]:
        """Return U, W = M U (averaged over compressed replicas), and the right factor."""
        (m, n), low_rank, choice = stack.shape, state.basis.shape[-1], self.plan().right
        compressed = self.syncs_replicas(stack.shape, stack.mesh)
        setting = Setting(choice, Place(m, n, stack.count, worker))
        right = RIGHT_FACTORS[choice.right_factor]
        flops = stack.count * right.flops(stack.rows, low_rank, setting)
        if isinstance(right, Oracle):
            await worker.compute(flops, "orth")
            u, factor = await right.apply(gathered, state.basis, setting)
            await worker.compute(product, "W")
            return u, gathered @ u, factor
        await worker.compute(product, "P")
        u = await self._left_factor(stack, gathered, state, compressed, worker)
        await worker.compute(product, "W")
        w = gathered @ u
        if compressed:
            w = await worker.mesh.replicas.mean(w, part="W")
        await worker.compute(flops, "right factor")
        return u, w, await right.apply(w, state.basis, setting)

    async def _left_factor(self, stack: Stack, m: Tensor, state: Any, compressed: bool, worker: Worker) -> Tensor:
        """Return U = orth(P) of every matrix, P = M^T V; ``m`` is this worker's rows of M."""
        replicas, shards = worker.mesh.replicas, worker.mesh.shards
        owners = shards if shards.size > 1 else replicas
        # this worker's summand of P, r rows of n, which may well be more than its own rows
        operands = m, state.basis
        if shards.size > 1:
            # reduce-scatter before averaging: one worker in F averages each P, as microsoft/dion does
            p = await shards.reduce_scatter(worker.ops.lazily(_summand, *operands), dim=-3, part="P")
            if compressed:
                p = await replicas.mean(p, part="P")
        elif compressed:
            p = await replicas.reduce_scatter(worker.ops.lazily(_summand, *operands), dim=-3, mean=True, part="P")
        else:
            p = replicas.share(_summand(*operands), dim=-3)
        step, how, warmup = int(state.step), self.left_factor, self.cqr_warmup
        flops = left_factor_flops(stack.shape[1], p.shape[-1], how, step, warmup)
        await worker.compute(stack.count // owners.size * flops, "orth")
        u: Tensor = await owners.all_gather(make_left_factor(p, how, worker.seed, step, warmup), dim=-3, part="P")
        return u


def _summand(m: Tensor, basis: Tensor) -> Tensor:
    """Return what one shard's rows of M and V add to P = M^T V."""
    return m.mT @ basis

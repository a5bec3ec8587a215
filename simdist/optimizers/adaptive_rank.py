"""Low-rank rules whose rank follows the effective rank of what they see: what Ada-Orth-Dion and AdaDion share (card 2).

Every matrix of a stack has a rank r_t of its own. The stack's factors are batched at a common width k, at which they
travel: columns of a matrix beyond its r_t are zeros in V, P, U and W, and take no part in anything, but their bytes are
real. ``wire_form`` says what k is:

- ``active``: the largest r_t of the stack in this step;
- ``pad_to_cap``: r_cap always, as AdaDion V2 does on FSDP, so that a lower rank saves no bytes. (V2 also all-reduces
  the column norms twice; here once.)

Bytes are those of :mod:`simdist.optimizers.low_rank` with k for r. All workers know all r_t without sending anything:
the controller reads column norms that were all-reduced anyway (Gram diagonal or column norms; r four-byte numbers more
where a right factor has neither).

Parameters of equal shape share a stack, hence a width. The authors' single-GPU code treats each matrix alone; values
are the same, and so are bytes where a stack holds one matrix.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from pydantic import model_validator
from torch import Tensor
from torch.nn.functional import pad

from simdist.linalg.deciding import decide
from simdist.linalg.orthonormalize import orthonormalize
from simdist.optimizers.low_rank import LowRank, Seen
from simdist.optimizers.rank_controller import RankController, Ranks, active_columns
from simdist.optimizers.rule import MeshShape, Stack
from simdist.optimizers.sharded_qr import qr_flops, statistic
from simdist.program import Worker
from simdist.program.random import normal
from simdist.settings import Share


class AdaptiveState(NamedTuple):
    """The state of a low-rank rule (``basis`` has k columns), and :class:`Ranks` of its controller, ``[c]`` each."""

    buffer: Tensor
    basis: Tensor
    step: Tensor
    rank: Tensor
    erank: Tensor
    error: Tensor


class Change(NamedTuple):
    """How columns change at the end of a step: kept in ``order`` up to the smaller rank, in a new common width.

    ``before`` and ``after`` are ranks ``[..., c]``; ``order`` is ``[..., c, k]``, or None where it stays.
    """

    before: Tensor
    after: Tensor
    order: Tensor | None
    width: int

    def kept(self, x: Tensor) -> Tensor:
        """Return the columns of ``x``, ``[..., c, rows, k]``, that are kept; zeros elsewhere, in the new width."""
        if self.order is not None:
            x = x.gather(-1, self.order.unsqueeze(-2).expand(x.shape))
        x = pad(x, (0, max(0, self.width - x.shape[-1])))[..., : self.width]
        kept = active_columns(torch.minimum(self.before, self.after), self.width).unsqueeze(-2)
        return torch.where(kept, x, torch.zeros_like(x))


class AdaptiveRank(RankController, LowRank):
    """Base of rules with a rank per matrix and step; the settings of the controller are among its own.

    ``rank``, or ``rank_fraction`` of the shorter side (rounded up), is the first rank, cut to r_cap; ``rank_multiple``
    is for the ranks that the controller chooses. ``growth``: new columns of V are Gaussian, of length one
    (``normalized``) or orthonormal among themselves (``orthonormal``), and the same on all meshes.
    ``sort_before_drop``: a falling rank drops the columns with the least s_j; otherwise the last ones, whatever they
    hold, as the authors do. ``replica_sync``: what compressed replicas exchange: ``factors``, ``gradients``, or
    (``auto``) factors where they are smaller than gradients at r_cap, as V2 decides. ``wire_form``: see
    :mod:`simdist.optimizers.adaptive_rank`.
    """

    rank_fraction: Share | None = 0.25
    wire_form: Literal["active", "pad_to_cap"] = "active"
    growth: Literal["normalized", "orthonormal"] = "normalized"
    sort_before_drop: bool = False
    replica_sync: Literal["auto", "factors", "gradients"] = "auto"

    @model_validator(mode="before")
    @classmethod
    def _either_rank(cls, given: Any) -> Any:
        """Let ``rank`` take the place of a default ``rank_fraction``, and the other way round."""
        if isinstance(given, dict):
            for one, other in (("rank", "rank_fraction"), ("rank_fraction", "rank")):
                if given.get(one) is not None and other not in given:
                    given = {**given, other: None}
        return given

    def low_rank(self, shape: tuple[int, ...]) -> int:
        """Return the first rank."""
        first = self.rank
        if first is None:
            assert self.rank_fraction is not None
            # the subtracted bit forgives products such as 0.1 * 30 = 3.0000000000000004
            first = max(1, math.ceil(self.rank_fraction * min(shape) - 1e-9))
        return min(first, self.rank_cap(shape))

    def syncs_replicas(self, shape: tuple[int, ...], mesh: MeshShape) -> bool:
        (m, n), cap = shape, self.rank_cap(shape)
        smaller = cap < min(m, n) and (m + n) * cap < m * n
        return mesh.replicas > 1 and (self.replica_sync == "factors" or (self.replica_sync == "auto" and smaller))

    def init(self, stack: Stack, x: Tensor, worker: Worker) -> Any:
        state, first = super().init(stack, x, worker), self.low_rank(stack.shape)
        rank = torch.tensor([first] * len(stack.names) + [0] * (stack.count - len(stack.names)), device=x.device)
        rank = rank.reshape((1,) * (x.ndim - 3) + rank.shape)
        basis = pad(state.basis, (0, self._width(stack, rank) - first))
        erank = rank.double()
        return AdaptiveState(state.buffer, basis, state.step, rank, erank, torch.zeros_like(erank))

    def _width(self, stack: Stack, rank: Tensor) -> int:
        if self.wire_form == "pad_to_cap":
            return self.rank_cap(stack.shape)
        return decide(rank.max(), planned=self.low_rank(stack.shape))

    def update_size(self, stack: Stack, state: Any) -> float | Tensor:
        size = super().update_size(stack, state)
        if self.scale != "rank_comp":
            return size
        # from the common width to the rank of each matrix
        ratio = state.basis.shape[-1] / state.rank.clamp(min=1).double()
        per_matrix: Tensor = (size * ratio.sqrt()[..., None, None]).to(state.basis.dtype)
        return per_matrix

    def noted(self, stack: Stack, state: Any) -> dict[str, Tensor]:
        return {"rank": state.rank}

    async def adapt(self, stack: Stack, worker: Worker, seen: Seen, state: Any) -> Any:
        squares = seen.squares
        if squares is None:
            squares = await worker.mesh.shards.sum(
                statistic(seen.w.double().square().sum(dim=-2, keepdim=True), like=seen.w),
                part="norms",
                wire="statistics",
            )
        lengths = squares.squeeze(-2).double().sqrt()
        error = await self._relative_error(stack, worker, seen) if self.quality_control else None
        before = Ranks(state.rank, state.erank, state.error)
        after = self.observed(before, int(state.step), self.rank_cap(stack.shape), lengths, error)
        order = self._order(lengths, before.rank, after.rank) if self.sort_before_drop else None
        change = Change(before.rank, after.rank, order, self._width(stack, after.rank))
        basis = change.kept(state.basis) + await self._grown(stack, worker, change, state)
        return self.followed(change, state._replace(**after._asdict(), basis=basis))

    def followed(self, change: Change, state: Any) -> Any:
        """Return the state with whatever else it holds per column changed likewise; here ``state`` itself."""
        return state

    async def _relative_error(self, stack: Stack, worker: Worker, seen: Seen) -> Tensor:
        """Return ``||M - W U^T||_F / ||M||_F``, ``[..., c]``; over compressed replicas, of the mean squares."""
        await worker.compute(5.0 * stack.local_numel, "error")
        parts = (seen.gathered - seen.captured, seen.gathered)
        squares = torch.stack([x.double().square().sum(dim=(-2, -1)) for x in parts], dim=-1)
        squares = await joint_squares(self, stack, worker, statistic(squares, like=seen.gathered), "error")
        missed, whole = squares.double().sqrt().unbind(-1)
        return missed / (whole + 1e-12)

    def _order(self, lengths: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """Return ``[..., c, k]``: columns by falling s_j where the rank falls, as they are elsewhere."""
        width = lengths.shape[-1]
        ranked = torch.where(active_columns(before, width), lengths, -1.0)
        falling = ranked.argsort(dim=-1, descending=True, stable=True)
        return torch.where((after < before).unsqueeze(-1), falling, torch.arange(width, device=lengths.device))

    async def _grown(self, stack: Stack, worker: Worker, change: Change, state: Any) -> Tensor:
        """Return new columns of V where ranks rise, zeros elsewhere: ``[..., c, rows, width]``."""
        m, like = stack.shape[0], state.basis
        whole = like.new_zeros((stack.count, stack.mesh.shards * stack.rows, change.width))
        flops = 0.0
        for i, name in enumerate(stack.names):
            # a plan has no column norms to go by: ranks stay what they are
            first = self.low_rank(stack.shape)
            before, after = (decide(rank[..., i], planned=first) for rank in (change.before, change.after))
            if after <= before:
                continue
            new = normal((m, after - before), worker.seed, f"V/{name}", step=int(state.step))
            if self.growth == "orthonormal":
                new, work = orthonormalize(new), qr_flops(m, after - before)
            else:
                new, work = new / torch.linalg.vector_norm(new, dim=0), 3.0 * new.numel()
            whole[i, :m, before:after] = new.to(whole)
            flops += work
        await worker.compute(flops, "grow")
        whole = whole.reshape((1,) * (like.ndim - 3) + whole.shape)
        columns: Tensor = worker.mesh.shards.share(whole, dim=-2)
        return columns


async def joint_squares(rule: LowRank, stack: Stack, worker: Worker, squares: Tensor, part: str) -> Tensor:
    """Return sums of squares over shards, and their mean over replicas where each has a buffer of its own."""
    squares = await worker.mesh.shards.sum(squares, part=part, wire="statistics")
    if rule.syncs_replicas(stack.shape, stack.mesh):
        squares = await worker.mesh.replicas.mean(squares, part=part, wire="statistics")
    return squares

"""AdaDion V3 (the authors of arXiv 2605.16341; code only): adaptive rank, and error feedback per mode (card 2)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from simdist.linalg.orthonormalize import orthonormalize
from simdist.optimizers.adadion import UNIT_COLUMNS
from simdist.optimizers.adaptive_rank import AdaptiveRank, AdaptiveState, Change, joint_squares
from simdist.optimizers.low_rank import Plan, Seen
from simdist.optimizers.mode_persistence import SHORT, Modes, cleared_shares, matched
from simdist.optimizers.rank_controller import active_columns
from simdist.optimizers.rule import Decay, Stack, optimizers
from simdist.optimizers.sharded_qr import statistic
from simdist.optimizers.spectral import Scale
from simdist.program import Worker
from simdist.settings import PositiveFloat, PositiveInt, Share


class ModeState(NamedTuple):
    """:class:`simdist.optimizers.adaptive_rank.AdaptiveState` and :class:`Modes` in one."""

    buffer: Tensor
    basis: Tensor
    step: Tensor
    rank: Tensor
    erank: Tensor
    error: Tensor
    direction: Tensor
    persistence: Tensor
    left: Tensor
    known: Tensor


@optimizers.register("adadion_v3")
class AdaDionV3(AdaptiveRank):
    """Dion with adaptive rank and error feedback per mode; hidden matrices (Pro-Place/ansh-orth-dion code, V3).

    ``R <- M - captured diag(b)``, with b from the persistence of the gradient along each mode
    (:mod:`simdist.optimizers.mode_persistence`); ``beta`` is its mean, and b in the first step.
    ``align_modes`` pairs modes by direction and sign, which V3 does not. After a change of a matrix' rank its
    persistence waits a step, as in V3. ``buffer_limit``: where ``||R||_F`` exceeds this many ``||G||_F``, R is scaled
    down to it; None: never.

    V3's code can keep its rank fixed and does so by default: ``rank_min`` and ``rank_max`` both at ``rank`` here. Its
    five steps of warm-up are the learning rate's, hence the schedule's. Its damped partial orthogonalisation is defined
    there but not called, and not offered here. First rank 64; ranks rise and fall at once.

    Sent beyond :mod:`simdist.optimizers.adaptive_rank`: two four-byte numbers a mode (``modes``) and two a matrix
    (``limit``), all-reduced over shards; where replicas exchange factors G U is averaged over them as W is
    (``modes``), and the two a matrix too: the limit then compares root mean squares of the replicas' R and G.
    """

    keeps_gradient: ClassVar[bool] = True

    name: Literal["adadion_v3"] = "adadion_v3"
    scale: Scale = "none"
    rank: PositiveInt | None = 64
    rank_fraction: Share | None = None
    rank_min: PositiveInt = 8
    rank_max_fraction: Share = 1.0
    rounding: Literal["nearest", "up"] = "up"
    erank_start: Literal["erank", "rank"] = "rank"
    step_up: PositiveInt | None = None
    step_down: PositiveInt | None = None
    growth: Literal["normalized", "orthonormal"] = "orthonormal"
    beta: Share = 0.1
    persistence_decay: Decay = 0.95
    sharpness: PositiveFloat = 10.0
    align_modes: bool = False
    buffer_limit: PositiveFloat | None = 5.0

    def plan(self) -> Plan:
        return Plan(UNIT_COLUMNS, keep=1.0, clear=self.beta)

    def start(self, gaussian: Tensor) -> Tensor:
        return orthonormalize(gaussian)

    def init(self, stack: Stack, x: Tensor, worker: Worker) -> ModeState:
        state: AdaptiveState = super().init(stack, x, worker)
        persistence = torch.zeros((*state.rank.shape, state.basis.shape[-1]), dtype=torch.float64, device=x.device)
        left = x.new_zeros((*state.rank.shape, stack.shape[1] if self.align_modes else 0, state.basis.shape[-1]))
        direction = torch.zeros_like(state.basis, dtype=x.dtype)
        return ModeState(*state, direction, persistence, left, torch.zeros_like(state.rank) > 0)

    async def feed_back(self, stack: Stack, worker: Worker, seen: Seen, state: Any) -> Any:
        active = active_columns(state.rank, seen.w.shape[-1])
        modes = await self._compared(stack, worker, seen, state, active)
        if int(state.step) == 0:
            shares = torch.full_like(modes.persistence, self.beta)
        else:
            shares = cleared_shares(modes.persistence, active, self.beta, self.sharpness)
        along = seen.w if self.cleared == "average" else seen.gathered @ seen.u
        buffer = seen.gathered - (along * shares.unsqueeze(-2).to(along.dtype)) @ seen.u.mT
        if self.buffer_limit is not None:
            buffer = await self._limited_buffer(self.buffer_limit, stack, worker, seen.gradient, buffer)
        return state._replace(buffer=buffer, **modes._asdict())

    async def _compared(self, stack: Stack, worker: Worker, seen: Seen, state: Any, active: Tensor) -> Modes:
        """Return the modes of this step, with their persistence."""
        await worker.compute(2.0 * stack.local_numel * seen.u.shape[-1], "modes")
        q = seen.gradient @ seen.u
        if self.syncs_replicas(stack.shape, stack.mesh):
            q = await worker.mesh.replicas.mean(q, part="modes")
        before, persistence = state.direction, state.persistence
        if self.align_modes:
            match = matched(state.left, seen.u, active & state.known.unsqueeze(-1))
            before, persistence = match.columns(before), persistence.gather(-1, match.source)
        sums = torch.stack([(q * before).double().sum(dim=-2), q.double().square().sum(dim=-2)], dim=-2)
        sums = await worker.mesh.shards.sum(statistic(sums, like=q), part="modes", wire="statistics")
        products, squares = sums.double().unbind(-2)
        lengths = squares.sqrt().clamp(min=SHORT)
        followed = self.persistence_decay * persistence + (1.0 - self.persistence_decay) * products / lengths
        persistence = torch.where(state.known.unsqueeze(-1), followed, persistence)
        left = seen.u if self.align_modes else state.left
        return Modes(q / lengths.unsqueeze(-2).to(q.dtype), persistence, left, state.rank > 0)

    async def _limited_buffer(self, limit: float, stack: Stack, worker: Worker, grad: Tensor, buffer: Tensor) -> Tensor:
        await worker.compute(5.0 * stack.local_numel, "limit")
        parts = (buffer, grad.expand_as(buffer))
        squares = torch.stack([x.double().square().sum(dim=(-2, -1)) for x in parts], dim=-1)
        squares = await joint_squares(self, stack, worker, statistic(squares, like=buffer), "limit")
        size, gradient = squares.double().sqrt().unbind(-1)
        over = (gradient > 1e-8) & (size > limit * gradient)
        factor = torch.where(over, limit * gradient / torch.where(over, size, 1.0), 1.0)
        return buffer * factor[..., None, None].to(buffer.dtype)

    def followed(self, change: Change, state: Any) -> Any:
        return state._replace(
            direction=change.kept(state.direction),
            persistence=change.kept(state.persistence.unsqueeze(-2)).squeeze(-2),
            left=change.kept(state.left),
            known=state.known & (change.before == change.after),
        )

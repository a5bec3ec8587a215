"""How many columns a low-rank factor is worth: the rank controller of the AdaDion family (card 2), as pure functions.

A controller looks at the column norms s_j of W = M U (before they are normalised), that is, at estimates of M's
leading singular values, and answers with the rank of the next step:

    p = s / sum s,  erank = exp(-sum p log p)          between 1 and r
    ema <- a ema + (1 - a) erank
    target = round(gamma ema), cut to [rank_min, r_cap], rounded to a multiple, cut again
    rank <- target, but at most ``step_up`` above and ``step_down`` below the rank there is

Sources: ansschh/adadion-cifar ``benchmark/adadion_v2/adadion_v2.py`` (V2), ansschh/structdion ``ada_dion/adadion.py``
(V1, quality control), Pro-Place/ansh-orth-dion ``benchmark/adadion_v3/adadion_v3.py`` (V3).
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from pydantic import model_validator
from torch import Tensor

from simdist.optimizers.rule import Decay
from simdist.settings import Fraction, NaturalFloat, PositiveFloat, PositiveInt, Settings, Share


class Ranks(NamedTuple):
    """What a controller remembers of each matrix of a stack, ``[..., c]``; equal on all workers.

    ``rank``: r_t, int64, 0 for dummies. ``erank``: the running mean of effective ranks, float64. ``error``: that of
    relative approximation errors, float64 (quality control only, else zeros).
    """

    rank: Tensor
    erank: Tensor
    error: Tensor


class RankController(Settings):
    """Settings of a rank controller; the defaults are AdaDion V2's.

    Attributes:
        gamma: rank wanted per unit of effective rank.
        erank_decay: ``a`` of the running mean of effective ranks.
        erank_start: what that mean starts from: the first effective rank (V1, V2) or the first rank (V3).
        rounding: to the nearest, halves to even (V1, V2), or up (V3); of the target and of its multiple alike.
        rank_min: least rank, cut to r_cap.
        rank_max: greatest rank (V1: 256), or None.
        rank_max_fraction: greatest rank as a fraction of the shorter side, rounded up; r_cap is the smaller of both.
        rank_multiple: ranks are multiples of it, but where rank_min or r_cap is none.
        step_up: how far a rank may rise in a step; None: at once.
        step_down: how far it may fall.
        adapt_every: steps between changes of the rank; the mean is updated at every step.
        quality_control: V1's: a relative error ``e = ||M - W U^T||_F / ||M||_F`` above ``max(error_target, (1 +
            error_margin) mean)`` asks for at least ``rank + step_up``, one below ``min(error_target / 2, (1 -
            error_margin) mean)`` for at most ``rank - step_down``. The mean is of this and past errors.
        error_target: see ``quality_control``.
        error_margin: see ``quality_control``.
        error_decay: decay of the mean of errors.
    """

    gamma: PositiveFloat = 1.5
    erank_decay: Decay = 0.9
    erank_start: Literal["erank", "rank"] = "erank"
    rounding: Literal["nearest", "up"] = "nearest"
    rank_min: PositiveInt = 16
    rank_max: PositiveInt | None = None
    rank_max_fraction: Share = 0.7
    rank_multiple: PositiveInt = 8
    step_up: PositiveInt | None = 16
    step_down: PositiveInt | None = 8
    adapt_every: PositiveInt = 1
    quality_control: bool = False
    error_target: NaturalFloat = 0.08
    error_margin: Fraction = 0.15
    error_decay: Decay = 0.95

    @model_validator(mode="after")
    def _steps_for_quality(self) -> RankController:
        if self.quality_control and (self.step_up is None or self.step_down is None):
            raise ValueError(
                f"got quality_control with step_up {self.step_up} and step_down {self.step_down}; expected numbers, "
                "as quality control asks for whole steps: write step_up=16 and step_down=8"
            )
        return self

    def rank_cap(self, shape: tuple[int, ...]) -> int:
        """Return r_cap for a matrix of this full shape.

        >>> RankController().rank_cap((30, 25)), RankController(rank_max=16).rank_cap((30, 25))
        (18, 16)
        """
        # the subtracted bit forgives products such as 0.7 * 10 = 7.000000000000001
        most = max(1, math.ceil(self.rank_max_fraction * min(shape) - 1e-9))
        return most if self.rank_max is None else min(most, self.rank_max)

    def observed(self, ranks: Ranks, step: int, cap: int, lengths: Tensor, error: Tensor | None = None) -> Ranks:
        """Return the memory after a step, with the ranks of the next one.

        Args:
            ranks: memory of before the step, with its ranks; before the first step ``erank`` is the rank.
            step: which step this was, from 1.
            cap: r_cap.
            lengths: s_j, ``[..., c, k]``, of which the first r_t of each matrix count.
            error: relative approximation errors, ``[..., c]``; needed for quality control only.
        """
        first = step == 1
        erank = effective_rank(lengths, ranks.rank)
        if not (first and self.erank_start == "erank"):
            erank = self.erank_decay * ranks.erank + (1.0 - self.erank_decay) * erank
        mean_error = ranks.error
        if error is not None:
            # squares that overflowed on the wire say nothing
            error = torch.where(error.isfinite(), error, ranks.error)
            mean_error = error if first else self.error_decay * ranks.error + (1.0 - self.error_decay) * error
        after = Ranks(ranks.rank, erank, mean_error)
        if step % self.adapt_every:
            return after
        wanted = self._rounded(self.gamma * erank)
        if error is not None:
            wanted = self._quality_controlled(wanted, ranks.rank.double(), error, mean_error)
        return after._replace(rank=self._limited(self._cut(wanted, cap), ranks.rank, cap))

    def _rounded(self, x: Tensor) -> Tensor:
        # the subtracted bit forgives rounding: 8.000000000000002 is 8, not 9
        return x.round() if self.rounding == "nearest" else (x - 1e-9 * x.abs()).ceil()

    def _quality_controlled(self, wanted: Tensor, rank: Tensor, error: Tensor, mean: Tensor) -> Tensor:
        assert self.step_up is not None
        assert self.step_down is not None
        poor = error > (mean * (1.0 + self.error_margin)).clamp(min=self.error_target)
        good = error < (mean * (1.0 - self.error_margin)).clamp(max=self.error_target / 2)
        wanted = torch.where(poor, torch.maximum(wanted, rank + self.step_up), wanted)
        return torch.where(good, torch.minimum(wanted, rank - self.step_down), wanted)

    def _cut(self, wanted: Tensor, cap: int) -> Tensor:
        """Round to a multiple (one of it at least) within the limits, which hold before and after."""
        least = min(self.rank_min, cap)
        within = wanted.clamp(least, cap) / self.rank_multiple
        return (self._rounded(within).clamp(min=1) * self.rank_multiple).clamp(least, cap)

    def _limited(self, target: Tensor, rank: Tensor, cap: int) -> Tensor:
        """Limit the change of the rank; dummies, of rank 0, stay at 0."""
        after = target.to(rank.dtype)
        if self.step_up is not None:
            after = torch.minimum(after, rank + self.step_up)
        if self.step_down is not None:
            after = torch.maximum(after, rank - self.step_down)
        after = after.clamp(min(self.rank_min, cap), cap)
        return torch.where(rank > 0, after, rank)


def active_columns(rank: Tensor, width: int) -> Tensor:
    """Return ``[..., c, width]``: whether a column is among the first r_t of its matrix.

    >>> active_columns(torch.tensor([2, 0]), 3).tolist()
    [[True, True, False], [False, False, False]]
    """
    return torch.arange(width, device=rank.device) < rank.unsqueeze(-1)


def effective_rank(lengths: Tensor, rank: Tensor) -> Tensor:
    """Return exp(entropy of s / sum s) over the first r_t columns, ``[..., c]`` float64.

    1e-12 is added to each s_j, as in the AdaDion family, so that zeros give r_t; so does what is not finite. A matrix
    of rank 0 has effective rank 0.

    >>> effective_rank(torch.tensor([[3.0, 3.0, 0.0], [1.0, 9.0, 9.0]]), torch.tensor([3, 1])).round().tolist()
    [2.0, 1.0]
    """
    active = active_columns(rank, lengths.shape[-1])
    s = torch.where(active, lengths.double() + 1e-12, 0.0)
    p = s / s.sum(dim=-1, keepdim=True)
    erank = torch.special.entr(p).sum(dim=-1).exp()
    return torch.where(erank.isfinite(), erank, rank.double())

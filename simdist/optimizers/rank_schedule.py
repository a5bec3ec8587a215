"""How many singular pairs an update keeps in the course of a run: constant, in pieces, or along a cosine (card 7)."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

from pydantic import model_validator

from simdist.settings import NaturalInt, PositiveInt, Settings, Share


class RankSchedule(Settings):
    """The fraction rho(t) of the shorter side; NuMuon keeps ``ceil(rho min(m, n))`` pairs in step t = 0, 1, ...

    The paper (arXiv 2603.03597) has these three shapes; which numbers it uses is not confirmed for us.

    Attributes:
        start: rho of step 0.
        shape: ``constant``; ``piecewise``: a new value at each of ``pieces``; ``cosine``: half a cosine wave from
            ``start`` to ``final`` over ``steps`` steps, then ``final``.
        pieces: (first step, rho) of each further piece, steps rising; for ``piecewise``.
        final: for ``cosine``.
        steps: for ``cosine``.
    """

    start: Share = 1.0
    shape: Literal["constant", "piecewise", "cosine"] = "constant"
    pieces: tuple[tuple[NaturalInt, Share], ...] = ()
    final: Share | None = None
    steps: PositiveInt | None = None

    @model_validator(mode="after")
    def _fits_its_shape(self) -> RankSchedule:
        if bool(self.pieces) != (self.shape == "piecewise"):
            raise ValueError(
                f"got {len(self.pieces)} pieces for the shape {self.shape}; expected pieces for piecewise alone: "
                "write shape=piecewise, pieces=[[1000, 0.5], [2000, 0.25]]"
            )
        given = [key for key in ("final", "steps") if getattr(self, key) is not None]
        if len(given) != (2 if self.shape == "cosine" else 0):
            raise ValueError(
                f"got {' and '.join(given) or 'neither final nor steps'} for the shape {self.shape}; expected both for "
                "cosine, neither otherwise: write shape=cosine, final=0.25, steps=1000"
            )
        firsts = [0, *(first for first, _ in self.pieces)]
        if any(after <= before for before, after in pairwise(firsts)):
            raise ValueError(f"got pieces that start at steps {firsts[1:]}; expected rising steps, the first above 0")
        return self

    def at(self, step: int) -> float:
        """Return rho of this step.

        >>> RankSchedule(shape="piecewise", pieces=((2, 0.5), (3, 0.25))).at(2)
        0.5
        >>> [RankSchedule(shape="cosine", final=0.5, steps=2).at(step) for step in range(4)]
        [1.0, 0.75, 0.5, 0.5]
        """
        if self.final is not None and self.steps is not None:
            wave = (1 + math.cos(math.pi * min(step, self.steps) / self.steps)) / 2
            return self.final + (self.start - self.final) * wave
        rho = self.start
        for first, value in self.pieces:
            rho = value if step >= first else rho
        return rho

    @property
    def rises(self) -> bool:
        """Whether rho is larger in some step than in the one before."""
        values = [self.start, *(value for _, value in self.pieces), *([] if self.final is None else [self.final])]
        return any(after > before for before, after in pairwise(values))


def pairs_of(rho: float, m: int, n: int) -> int:
    """Return ``ceil(rho min(m, n))``.

    >>> pairs_of(0.1, 30, 40), pairs_of(1.0, 7, 5), pairs_of(0.01, 7, 5)
    (3, 5, 1)
    """
    # the subtracted bit forgives products such as 0.1 * 30 = 3.0000000000000004
    return max(1, math.ceil(rho * min(m, n) - 1e-9))

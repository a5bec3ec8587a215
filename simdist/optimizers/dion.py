"""Dion (arXiv 2504.05295; microsoft/dion): low-rank orthonormal updates with decoupled momentum."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from simdist.optimizers.low_rank import LowRank, Plan
from simdist.optimizers.right_factor import RightFactorSettings
from simdist.optimizers.rule import Decay, optimizers
from simdist.optimizers.spectral import Scale


@optimizers.register("dion")
class Dion(LowRank):
    """Dion: one warm power step, orthonormal times unit columns, decoupled momentum (arXiv 2504.05295).

    For hidden matrices. ``B = M + G``; ``P = orth``, ``R`` the factors of B (see :mod:`simdist.optimizers.low_rank`);
    ``M <- B - (1-mu) (captured part)``; ``X <- (1 - lr wd) X - lr sqrt(m/n) (update)``. In the words of Orth-Dion:
    column normalisation and error feedback ``code`` with beta 1 - mu. V starts as a Gaussian that is not normalised.

    As published, microsoft/dion makes P by ``left_factor: rcqr``; the default, Householder, gives the same products and
    costs less on small matrices. ``average_buffers_every`` and ``cleared: own`` are remedies for replicas whose buffers
    drift apart (card 3), not part of the published rule.
    """

    right: ClassVar[RightFactorSettings] = RightFactorSettings(right_factor="colnorm")

    name: Literal["dion"] = "dion"
    mu: Decay = 0.95
    scale: Scale = "spectral"

    def plan(self) -> Plan:
        return Plan(self.right, keep=1.0, clear=1.0 - self.mu)

    def start(self, gaussian: Tensor) -> Tensor:
        return gaussian

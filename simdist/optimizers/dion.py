"""Dion (arXiv 2504.05295; microsoft/dion): low-rank orthonormal updates with decoupled momentum."""

from __future__ import annotations

from torch import Tensor

from simdist.optimizers.low_rank import LowRank, Plan
from simdist.optimizers.rule import Decay, optimizers
from simdist.optimizers.spectral import Scale


@optimizers.register("dion")
class Dion(LowRank):
    """One warm power step; left factor orthonormal, right factor with unit columns; hidden matrices only.

    ``B = M + G``; ``P = orth``, ``R`` the factors of B (see :mod:`simdist.optimizers.low_rank`);
    ``M <- B - (1-mu) (captured part)``; ``X <- (1 - lr wd) X - lr sqrt(m/n) (update)``. In the words of Orth-Dion:
    column normalisation and error feedback ``code`` with beta 1 - mu. V starts as a Gaussian that is not normalised.
    """

    name: str = "dion"
    mu: Decay = 0.95
    scale: Scale = "spectral"

    def plan(self) -> Plan:
        return Plan("colnorm", 1, keep=1.0, clear=1.0 - self.mu)

    def start(self, gaussian: Tensor) -> Tensor:
        return gaussian

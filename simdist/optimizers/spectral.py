"""What rules for hidden matrices share: the update scale, and AdamW for every other parameter."""

from __future__ import annotations

import math
from abc import ABC
from typing import Literal

from simdist.optimizers.adamw import AdamW
from simdist.optimizers.rule import Rule

Scale = Literal["none", "spectral", "spectral_clipped", "rms", "dmin_dmax", "rank_comp"]


def update_scale(scale: Scale, m: int, n: int, low_rank: int) -> float:
    """Return the factor on the learning rate for an m x n (fan_out x fan_in) matrix; card 0's table.

    Papers disagree, and learning rates do not transfer between scales.

    >>> update_scale("spectral", 64, 16, 8), update_scale("spectral_clipped", 16, 64, 8), update_scale("none", 4, 2, 1)
    (2.0, 1.0, 1.0)
    """
    factors: dict[Scale, float] = {
        "none": 1.0,
        "spectral": math.sqrt(m / n),
        "spectral_clipped": math.sqrt(max(1.0, m / n)),
        "rms": 0.2 * math.sqrt(max(m, n)),
        "dmin_dmax": math.sqrt(min(m, n) / max(m, n)),
        "rank_comp": math.sqrt(min(m, n) / low_rank),
    }
    return factors[scale]


class Spectral(Rule, ABC):
    """A rule that treats a hidden matrix as a whole; embeddings, head and vectors go to ``auxiliary``."""

    scale: Scale
    auxiliary: AdamW = AdamW(lr=1e-3)

    def rule_for(self, role: str) -> Rule:
        return self if role == "matrix" else self.auxiliary

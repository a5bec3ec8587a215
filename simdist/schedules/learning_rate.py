"""The learning rate over the steps of a run."""

from __future__ import annotations

import math
from typing import Literal

from simdist.settings import Fraction, NaturalInt, Settings


class LearningRate(Settings):
    """Linear warm-up, then constant, linear or cosine decay.

    Attributes:
        warmup: steps until the full learning rate is reached, linearly from ``lr / warmup``.
        shape: what follows the warm-up.
        final: the fraction of the full rate that a decay arrives at, just after the last step (so that with
            ``final=0`` the last step still does something).
    """

    warmup: NaturalInt = 0
    shape: Literal["constant", "linear", "cosine"] = "constant"
    final: Fraction = 0.0

    def at(self, step: int, steps: int, lr: float) -> float:
        """Return the learning rate of ``step`` (0 to ``steps`` - 1) where ``lr`` is the full rate.

        >>> [LearningRate(warmup=2, shape="linear").at(step, 6, 1.0) for step in range(6)]
        [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
        """
        if step < self.warmup:
            return lr * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, steps - self.warmup)
        if self.shape == "linear":
            return lr * (1 - (1 - self.final) * done)
        if self.shape == "cosine":
            return lr * (self.final + (1 - self.final) * (1 + math.cos(math.pi * done)) / 2)
        return lr

"""AdamW (Loshchilov & Hutter, arXiv 1711.05101), the reference that every other rule is compared with."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from simdist.optimizers.rule import Decay, Rule, Stack, optimizers
from simdist.program import Worker
from simdist.settings import PositiveFloat


class AdamWState(NamedTuple):
    """Running means of gradient and squared gradient, and how many steps they have seen (a scalar tensor)."""

    mean: Tensor
    square: Tensor
    step: Tensor


@optimizers.register("adamw")
class AdamW(Rule):
    """AdamW: Adam with decoupled weight decay; elementwise, so shards send nothing for it (arXiv 1711.05101).

    ``m <- b1 m + (1-b1) g``; ``v <- b2 v + (1-b2) g^2``;
    ``x <- (1 - lr wd) x - lr (m / (1-b1^t)) / (sqrt(v / (1-b2^t)) + eps)``. The default betas are those usual for
    language models, not torch's.
    """

    name: str = "adamw"
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8

    elementwise: ClassVar[bool] = True

    def init(self, stack: Stack, x: Tensor, worker: Worker) -> AdamWState:
        return AdamWState(torch.zeros_like(x), torch.zeros_like(x), torch.zeros((), dtype=torch.float64))

    async def update(
        self, stack: Stack, x: Tensor, grad: Tensor, state: Any, lr: float, worker: Worker
    ) -> tuple[Tensor, AdamWState]:
        # three operations per running mean, the square, two corrections, root, sum, quotient, and the step's two
        await worker.compute(14.0 * stack.local_numel, "adamw")
        beta1, beta2 = self.betas
        step = state.step + 1
        mean = beta1 * state.mean + (1 - beta1) * grad
        square = beta2 * state.square + (1 - beta2) * grad.square()
        size = (square / (1 - beta2**step)).sqrt() + self.eps
        return self.decayed(stack, x, lr) - lr * (mean / (1 - beta1**step)) / size, AdamWState(mean, square, step)

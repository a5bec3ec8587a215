"""Lion (Chen et al., arXiv 2302.06675): the sign of an interpolated momentum."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from simdist.optimizers.rule import Decay, Rule, Stack, optimizers
from simdist.program import Worker


class LionState(NamedTuple):
    """``momentum``: the running mean of gradients, like the parameter."""

    momentum: Tensor


@optimizers.register("lion")
class Lion(Rule):
    """Lion: steps of equal size in every number, by the sign of an interpolated momentum (arXiv 2302.06675).

    ``x <- (1 - lr wd) x - lr sign(b1 m + (1-b1) g)``; ``m <- b2 m + (1-b2) g``. The default betas are the paper's;
    it takes (0.95, 0.98) for language models, and microsoft/dion (0.9, 0.95). Its advice: a learning rate 3 to 10
    times below AdamW's, and a weight decay that much above. ``sign(0)`` is 0.
    """

    name: str = "lion"
    betas: tuple[Decay, Decay] = (0.9, 0.99)

    # every number by itself: runs on shards, without optimizer traffic
    elementwise: ClassVar[bool] = True

    def init(self, stack: Stack, x: Tensor, worker: Worker) -> LionState:
        return LionState(torch.zeros_like(x))

    async def update(
        self, stack: Stack, x: Tensor, grad: Tensor, state: Any, lr: float, worker: Worker
    ) -> tuple[Tensor, LionState]:
        # three operations for each of the two means, the sign, and the step's two
        await worker.compute(9.0 * stack.local_numel, "lion")
        beta1, beta2 = self.betas
        direction = (beta1 * state.momentum + (1 - beta1) * grad).sign()
        momentum = beta2 * state.momentum + (1 - beta2) * grad
        return self.decayed(stack, x, lr) - lr * direction, LionState(momentum)

"""signSGD and Signum (Bernstein et al., arXiv 1802.04434): the sign of the gradient or of its running mean.

This is the rule of one worker with the joint batch: the gradient arrives averaged over all workers, and the sign is
taken after that. The paper's distributed form, a majority vote over the workers' own signs, replaces the averaging of
gradients by another exchange and is not a matter of the rule (card 12).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from simdist.optimizers.padding import real_rows
from simdist.optimizers.rule import Decay, Rule, Stack, optimizers
from simdist.program import Worker


class SignumState(NamedTuple):
    """``momentum``: the running mean of gradients, like the parameter."""

    momentum: Tensor


@optimizers.register("signum")
class Signum(Rule):
    """Signum: the sign of the mean gradient's momentum; signSGD with momentum=0 (arXiv 1802.04434).

    ``m <- beta m + (1-beta) g``; ``x <- (1 - lr wd) x - lr sign(m)``, with beta = ``momentum``. ``sign_of_zero`` is 0
    as in the usual implementations, or 1 as a wire of one bit a number would have it.
    """

    name: str = "signum"
    momentum: Decay = 0.9
    sign_of_zero: Literal[0, 1] = 0

    elementwise: ClassVar[bool] = True

    def init(self, stack: Stack, x: Tensor, worker: Worker) -> SignumState:
        return SignumState(torch.zeros_like(x))

    async def update(
        self, stack: Stack, x: Tensor, grad: Tensor, state: Any, lr: float, worker: Worker
    ) -> tuple[Tensor, SignumState]:
        # three operations for the mean, the sign, and the step's two
        await worker.compute(6.0 * stack.local_numel, "signum")
        momentum = self.momentum * state.momentum + (1 - self.momentum) * grad
        direction = momentum.sign()
        if self.sign_of_zero == 1:
            # padding holds zeros too, and has to stay where it is
            zeros = (momentum == 0) & real_rows(stack, momentum, worker)
            direction = direction + zeros.to(direction)
        return self.decayed(stack, x, lr) - lr * direction, SignumState(momentum)

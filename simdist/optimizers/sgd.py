"""Stochastic gradient descent with momentum (Polyak 1964; Nesterov form of Sutskever et al. 2013)."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import model_validator
from torch import Tensor

from simdist.optimizers.rule import Decay, Rule, Stack, optimizers
from simdist.program import Worker


class SGDState(NamedTuple):
    """``momentum``: the running sum of gradients, like the parameter."""

    momentum: Tensor


@optimizers.register("sgd")
class SGD(Rule):
    """Gradient descent, with momentum or Nesterov momentum on request (as torch.optim.SGD).

    ``b <- momentum b + g``; ``x <- (1 - lr wd) x - lr b``, and with ``nesterov`` ``g + momentum b`` in place of ``b``.
    Differs from ``torch.optim.SGD`` in the weight decay only, which is decoupled here as in all rules.
    """

    name: str = "sgd"
    momentum: Decay = 0.0
    nesterov: bool = False

    elementwise: ClassVar[bool] = True

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> SGD:
        if self.nesterov and self.momentum == 0:
            raise ValueError("got nesterov with momentum 0, which changes nothing; write momentum=0.9, say")
        return self

    def init(self, stack: Stack, x: Tensor, worker: Worker) -> SGDState:
        return SGDState(torch.zeros_like(x))

    async def update(
        self, stack: Stack, x: Tensor, grad: Tensor, state: Any, lr: float, worker: Worker
    ) -> tuple[Tensor, SGDState]:
        # one multiplication and one addition each for momentum and step, per number of this worker's shard
        await worker.compute(4.0 * stack.local_numel, "sgd")
        momentum = self.momentum * state.momentum + grad
        direction = grad + self.momentum * momentum if self.nesterov else momentum
        return self.decayed(stack, x, lr) - lr * direction, SGDState(momentum)

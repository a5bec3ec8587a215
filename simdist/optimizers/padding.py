"""Which rows of a stack are real, for rules that would otherwise move or choose padding."""

from __future__ import annotations

import torch
from torch import Tensor

from simdist.optimizers.rule import Stack
from simdist.program import Worker


def real_rows(stack: Stack, x: Tensor, worker: Worker) -> Tensor:
    """Return where ``x`` holds numbers of a parameter: booleans ``[..., count, rows, 1]`` (``[..., count, rows]``).

    ``x`` is this worker's part of the stack. False for the missing rows of the last shards and for dummies, which are
    zeros and must stay so. With as many leading worker axes as ``x`` has.
    """
    behind = len(stack.shape) - 1  # dims of one row
    whole = torch.zeros(stack.count, stack.mesh.shards * stack.rows, *(1,) * behind, dtype=torch.bool, device=x.device)
    whole[: len(stack.names), : stack.shape[0]] = True
    whole = whole.reshape((1,) * (x.ndim - whole.ndim) + whole.shape)
    mine: Tensor = worker.mesh.shards.share(whole, dim=-1 - behind)
    return mine

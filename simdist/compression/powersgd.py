"""PowerSGD (arXiv 1905.13727; epfml/powersgd): low-rank gradients by one power step, with error feedback (card 8)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from simdist.compression.compression import Compression, Link, compressions
from simdist.linalg.orthonormalize import orthonormalize
from simdist.program.random import normal
from simdist.settings import NaturalInt, PositiveFloat, PositiveInt


class Factors(NamedTuple):
    """``error``: what was not sent, m x n; ``left``, ``right``: the last factors, m x r and n x r; ``step``."""

    error: Tensor
    left: Tensor
    right: Tensor
    step: Tensor


@compressions.register("powersgd")
class PowerSGD(Compression):
    """PowerSGD (arXiv 1905.13727): rank-r factors of gradient plus error, averaged by two all-reduces.

    ``D = G + e``; ``P = orth(mean D Q)``; ``Q = mean D^T P``; ``P Q^T`` stands for the gradient; ``e = D - P Q^T``.
    Matrices m x n of this worker's rows (more dimensions: all but the first are joined). Sent per worker on a ring:
    ``2 (n_w - 1)/n_w (m + n) r b`` with b the bytes of ``wire.factors``.

    Over ``shards`` the method is not the paper's: P and Q of the whole matrix are all-reduced in place of the
    reduce-scatter, and each worker keeps an error buffer of the whole matrix, which defeats sharding its memory.

    Attributes:
        start: steps before compression begins; until then gradients are averaged as usual (PyTorch's hook: 1000).
        min_rate: tensors are compressed where mn >= min_rate (m + n) r.
        alternate: one factor per step, the sides in turn, half the bytes (epfml's later form).
        error_feedback: off: e is dropped.
        warm_start: off: Q begins anew from a Gaussian in every step.
    """

    name: str = "powersgd"
    rank: PositiveInt = 1
    start: NaturalInt = 0
    min_rate: PositiveFloat = 2.0
    alternate: bool = False
    error_feedback: bool = True
    warm_start: bool = True

    def takes(self, shape: tuple[int, ...]) -> bool:
        if len(shape) < 2:
            return False
        m, n = shape[0], math.prod(shape[1:])
        return self.rank <= min(m, n) and m * n >= self.min_rate * (m + n) * self.rank

    def init(self, link: Link, x: Tensor) -> Factors:
        matrix = _matrix(x, link)
        lead = matrix.shape[:-2]
        right = self._draw(link, matrix.shape[-1]).to(matrix).expand(*(1 for _ in lead), -1, -1)
        return Factors(matrix.clone(), matrix[..., : self.rank].clone(), right, torch.zeros((), dtype=torch.int64))

    def _draw(self, link: Link, n: int, step: int | None = None) -> Tensor:
        """Draw the first Q, the same on all workers."""
        return normal((n, self.rank), link.worker.seed, f"powersgd/{link.name}", step=step)

    async def mean(self, x: Tensor, state: Any, link: Link) -> tuple[Tensor, Factors]:
        matrix, step = _matrix(x, link), state.step + 1
        if int(step) <= self.start:
            plain = await _plain_mean(x, link)
            return plain, state._replace(step=step)
        target = matrix + state.error
        m, n = target.shape[-2:]
        await link.worker.compute((3 if self.alternate else 4) * 2.0 * m * n * self.rank, "powersgd")
        left, right = await self._factors(target, state, int(step) - self.start, link)
        approximation = left @ right.mT
        error = target - approximation if self.error_feedback else state.error
        result = approximation.unflatten(-2, (link.axis.size, -1)) if link.scatter else approximation
        if link.scatter:
            result = link.axis.share(result, -3).squeeze(-3)
        return result.reshape(*result.shape[:-2], *link.shape), Factors(error, left, right, step)

    async def _factors(self, target: Tensor, state: Factors, step: int, link: Link) -> tuple[Tensor, Tensor]:
        axis = link.axis
        right = state.right
        if not self.warm_start:
            right = self._draw(link, target.shape[-1], step).to(target).expand_as(state.right)
        if not self.alternate:
            left = orthonormalize(await axis.mean(target @ right, part="P", wire="factors"))
            return left, await axis.mean(target.mT @ left, part="Q", wire="factors")
        if step % 2:
            right = orthonormalize(right)
            return await axis.mean(target @ right, part="P", wire="factors"), right
        left = orthonormalize(state.left)
        return left, await axis.mean(target.mT @ left, part="Q", wire="factors")

    def memory(self, state: Any, link: Link) -> dict[str, Tensor]:
        return {"error": state.error.flatten(-2)} if self.error_feedback else {}


def _matrix(x: Tensor, link: Link) -> Tensor:
    """View a gradient as one matrix; scattered slices are the rows of the whole one."""
    rows = x.flatten(-len(link.shape) + 1) if len(link.shape) > 2 else x
    return rows.flatten(-3, -2) if link.scatter else rows


async def _plain_mean(x: Tensor, link: Link) -> Tensor:
    if not link.scatter:
        mean: Tensor = await link.axis.mean(x)
        return mean
    dim = -link.dims
    scattered: Tensor = await link.axis.reduce_scatter(x, dim, mean=True)
    return scattered.squeeze(dim)

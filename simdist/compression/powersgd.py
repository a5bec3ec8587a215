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
    """What was not sent, and the last factors.

    Attributes:
        error: m x n, differs between workers.
        left: P, m x r, the same on all members; empty unless the sides alternate.
        right: Q, n x r, the same on all members.
        step: how many means were taken.
    """

    error: Tensor
    left: Tensor
    right: Tensor
    step: Tensor


@compressions.register("powersgd")
class PowerSGD(Compression):
    """PowerSGD (arXiv 1905.13727): rank-r factors of gradient plus error, averaged by two all-reduces.

    ``D = G + e``; ``P = orth(mean D Q)``; ``Q = mean D^T P``; ``P Q^T`` stands for the gradient; ``e = D - P Q^T``.
    Matrices m x n of this worker's rows (more dimensions: all but the first are joined). Sent per worker on a ring,
    w members: ``2 (w - 1)/w (m + n) r b`` with b the bytes of ``wire.factors``. Only mean factors matter, so all
    members see the same, rounded or not; e remembers what the rounding lost as well.

    Vectors, and matrices for which the factors save too little (``min_rate``; a rank beyond the sides among them), are
    averaged as usual.

    Over ``shards`` the method is not the paper's: P and Q of the whole matrix are all-reduced in place of the
    reduce-scatter, and each worker keeps an error buffer of the whole matrix, which defeats sharding its memory.

    Attributes:
        start: steps before compression begins; until then gradients are averaged as usual (PyTorch's hook: 1000).
        min_rate: matrices are compressed where ``mn > min_rate (m + n) r``, as PyTorch's hook decides.
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
        return self.rank <= min(m, n) and m * n > self.min_rate * (m + n) * self.rank

    def init(self, link: Link, x: Tensor) -> Factors:
        matrix = _matrix(x, link)
        m, n = matrix.shape[-2:]
        left = matrix.new_zeros(m, self.rank) if self.alternate else matrix.new_zeros(0, self.rank)
        alike = link.worker.ops.alike
        right = alike(self._draw(link, n).to(matrix))
        return Factors(matrix.clone(), alike(left), right, torch.zeros((), dtype=torch.int64))

    def _draw(self, link: Link, n: int, step: int | None = None) -> Tensor:
        """Draw a Q, the same on all workers."""
        return normal((n, self.rank), link.worker.seed, f"powersgd/{link.name}", step=step)

    async def mean(self, x: Tensor, state: Any, link: Link) -> tuple[Tensor, Factors]:
        matrix, step = _matrix(x, link), state.step + 1
        if int(step) <= self.start:
            return await _plain_mean(x, link), state._replace(step=step)
        target = matrix + state.error if self.error_feedback else matrix
        m, n = target.shape[-2:]
        await link.worker.compute((3 if self.alternate else 4) * 2.0 * m * n * self.rank, "powersgd")
        left, right = await self._factors(target, state, int(step) - self.start, link)
        approximation = left @ right.mT
        if link.real is not None:
            # a P of deficient rank is completed by directions that may point into padding rows
            approximation = torch.where(_matrix(link.shaped(link.real), link), approximation, 0)
        error = target - approximation if self.error_feedback else state.error
        result = approximation
        if link.scatter:
            result = link.axis.share(approximation.unflatten(-2, (link.axis.size, -1)), -3).squeeze(-3)
        kept = _kept(left, state.left) if self.alternate else state.left
        state = Factors(error, kept, _kept(right, state.right), step)
        return result.reshape(*result.shape[:-2], *link.shape), state

    async def _factors(self, target: Tensor, state: Factors, step: int, link: Link) -> tuple[Tensor, Tensor]:
        axis, right = link.axis, state.right
        if not self.warm_start:
            right = link.worker.ops.alike(self._draw(link, target.shape[-1], step).to(target))
        if not self.alternate:
            left = orthonormalize(await axis.mean(target @ _moderate(right), part="P", wire="factors"))
            return left, await axis.mean(target.mT @ left, part="Q", wire="factors")
        if step % 2:
            right = orthonormalize(right)
            return await axis.mean(target @ right, part="P", wire="factors"), right
        left = orthonormalize(state.left)
        return left, await axis.mean(target.mT @ left, part="Q", wire="factors")

    def memory(self, state: Any, link: Link) -> dict[str, Tensor]:
        return {"error": state.error.flatten(-2)} if self.error_feedback else {}


def _moderate(q: Tensor) -> Tensor:
    """Scale each Q by a power of two, to numbers of about 1: only its span matters, and D Q must not overflow.

    Q is as large as the gradients, and D Q as large as their square.
    """
    exponent = q.abs().amax((-2, -1), keepdim=True).frexp().exponent
    # ldexp multiplies by a float32
    return torch.ldexp(q, -exponent.clamp(-126, 126))


def _kept(new: Tensor, old: Tensor) -> Tensor:
    """Return the new factor, with old columns where new ones are zero: from zero, no power step finds back.

    So one step of zero gradients does not end a run's communication.
    """
    return torch.where((new != 0).any(-2, keepdim=True), new, old)


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

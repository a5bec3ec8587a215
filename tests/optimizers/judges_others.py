"""Dense single-worker judges in float64 of the rules of cards 4, 12 and 18, straight from the cards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.optimizers.judges import polar_polynomial


def lion(x: Tensor, grads: Sequence[Tensor], *, lr: float, weight_decay: float, b1: float, b2: float) -> Tensor:
    m = torch.zeros_like(x)
    for g in grads:
        u = torch.sign(b1 * m + (1 - b1) * g)
        x = (1 - lr * weight_decay) * x - lr * u
        m = b2 * m + (1 - b2) * g
    return x


def signum(
    x: Tensor, grads: Sequence[Tensor], *, lr: float, weight_decay: float, beta: float, sign_of_zero: float
) -> Tensor:
    m = torch.zeros_like(x)
    for g in grads:
        m = beta * m + (1 - beta) * g
        sign = torch.where(m > 0, 1.0, torch.where(m < 0, -1.0, sign_of_zero)).to(x)
        x = (1 - lr * weight_decay) * x - lr * sign
    return x


@dataclass(frozen=True)
class Choice:
    """How Dion2 and Dion3 choose and orthogonalise.

    Attributes:
        fraction: alpha.
        size: rows of a block: from each block of so many rows (the last may be shorter) are chosen ceil(alpha size)
            of its rows, or all that it has. The whole matrix is one block.
        columns: choose columns of the whole matrix instead.
        steps, margin, eps: of the polar polynomial.
    """

    fraction: float
    size: int
    steps: list[tuple[float, float, float]]
    margin: float
    eps: float
    columns: bool = False

    def blocks(self, m: int) -> list[range]:
        return [range(start, min(start + self.size, m)) for start in range(0, m, self.size)]

    def rows(self, momentum: Tensor) -> list[int]:
        k = max(1, math.ceil(self.fraction * self.size))
        chosen: list[int] = []
        for block in self.blocks(momentum.shape[0]):
            by_norm = sorted(block, key=lambda row: float(momentum[row].abs().sum()), reverse=True)
            chosen += by_norm[:k]
        return chosen

    def polar(self, chosen: Tensor) -> Tensor:
        return polar_polynomial(chosen, self.steps, self.margin, self.eps)


@dataclass
class Followed:
    """Where a judge ends, and which rows (or columns) it took in each step."""

    x: Tensor
    momentum: Tensor
    chosen: list[list[int]]


def dion2(
    x: Tensor, grads: Sequence[Tensor], choice: Choice, *, lr: float, weight_decay: float, scale: float, ef: float
) -> Followed:
    """Card 4; with columns the same on the transposed matrix, since the polar factor transposes with it."""
    if choice.columns:
        rows = Choice(choice.fraction, x.shape[1], choice.steps, choice.margin, choice.eps)
        turned = [g.T for g in grads]
        found = dion2(x.T, turned, rows, lr=lr, weight_decay=weight_decay, scale=scale, ef=ef)
        return Followed(found.x.T, found.momentum.T, found.chosen)
    m, x, taken = torch.zeros_like(x), x.clone(), []
    for g in grads:
        m = m + g
        chosen = choice.rows(m)
        o = choice.polar(m[chosen])
        m[chosen] = ef * m[chosen]
        x = (1 - lr * weight_decay) * x
        x[chosen] -= lr * scale * o
        taken.append(chosen)
    return Followed(x, m, taken)


def dion3(
    x: Tensor,
    grads: Sequence[Tensor],
    choice: Choice,
    *,
    lr: float,
    weight_decay: float,
    scale: float,
    mu: float,
    beta2: float,
    rescaled: int,
) -> Followed:
    """Card 4 with card 6's row normalisation, whose Frobenius norm is kept in each block of ``rescaled`` rows."""
    m, v, x, taken = torch.zeros_like(x), torch.zeros(x.shape[0], 1).to(x), x.clone(), []
    for g in grads:
        m = m + g
        chosen = choice.rows(m)
        o = choice.polar(m[chosen])
        m[chosen] = mu * m[chosen]
        v[chosen] = beta2 * v[chosen] + (1 - beta2) * (o**2).mean(dim=1, keepdim=True)
        hat = o / (v[chosen].sqrt() + 1e-8)
        x = (1 - lr * weight_decay) * x
        for start in range(0, x.shape[0], rescaled):
            inside = [i for i, row in enumerate(chosen) if start <= row < start + rescaled]
            if inside:
                kept = hat[inside] * (o[inside].norm() / hat[inside].norm())
                x[[chosen[i] for i in inside]] -= lr * scale * kept
        taken.append(chosen)
    return Followed(x, m, taken)

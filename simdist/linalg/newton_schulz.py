"""Newton-Schulz iterations towards the polar factor: odd quintic polynomials of a matrix (card 5)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, repeat
from typing import Literal

import torch
from torch import Tensor

CoefficientSet = Literal["jordan", "microsoft", "polar_express"]


@dataclass(frozen=True)
class Coefficients:
    """One (a, b, c) per step for ``Y <- a Y + (b A + c A^2) Y`` with ``A = Y Y^T``; the last is repeated if need be.

    Attributes:
        margin: the input is divided by ``margin`` times its Frobenius norm.
        eps: added to that norm.
        source: where the numbers come from.
    """

    steps: tuple[tuple[float, float, float], ...]
    margin: float
    eps: float
    source: str

    def take(self, count: int) -> Iterator[tuple[float, float, float]]:
        yield from self.steps[:count]
        yield from islice(repeat(self.steps[-1]), max(0, count - len(self.steps)))


COEFFICIENTS: dict[CoefficientSet, Coefficients] = {
    "jordan": Coefficients(((3.4445, -4.7750, 2.0315),), 1.0, 1e-7, "KellerJordan/Muon"),
    "microsoft": Coefficients(
        (
            (4.0848, -6.8946, 2.9270),
            (3.9505, -6.3029, 2.6377),
            (3.7418, -5.5913, 2.3037),
            (2.8769, -3.1427, 1.2046),
            (2.8366, -3.0525, 1.2012),
        ),
        1.0,
        1e-7,
        "microsoft/dion muon.py",
    ),
    "polar_express": Coefficients(
        (
            (8.156554524902461, -22.48329292557795, 15.878769915207462),
            (4.042929935166739, -2.808917465908714, 0.5000178451051316),
            (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
            (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
            (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
        ),
        1.02,
        1e-6,
        "arXiv 2505.16932",
    ),
}


def frobenius_norm(x: Tensor) -> Tensor:
    """Return the norm of each matrix, ``[..., 1, 1]``, without overflow or underflow of the squares."""
    largest = x.abs().amax(dim=(-2, -1), keepdim=True)
    safe = torch.where(largest > 0, largest, torch.ones_like(largest))
    return largest * (x / safe).square().sum(dim=(-2, -1), keepdim=True).sqrt()


def newton_schulz(
    x: Tensor, coefficients: CoefficientSet = "jordan", steps: int = 5, dtype: torch.dtype | None = None
) -> Tensor:
    """Return an approximate polar factor of each matrix ``[..., m, n]``, in ``x``'s dtype; zero stays zero.

    The wide orientation is iterated, so that A is the smaller Gram matrix. ``dtype`` is that of the iteration
    (None: ``x``'s own). Singular values end near one, not at one: how near depends on the coefficients (card 5).
    """
    table = COEFFICIENTS[coefficients]
    tall = x.shape[-2] > x.shape[-1]
    y = x / (table.margin * frobenius_norm(x) + table.eps)
    y = (y.mT if tall else y).to(dtype or x.dtype)
    for a, b, c in table.take(steps):
        gram = y @ y.mT
        y = a * y + (b * gram + c * (gram @ gram)) @ y
    return (y.mT if tall else y).to(x.dtype)


def newton_schulz_flops(m: int, n: int, steps: int) -> float:
    """Operations for one matrix: with s <= l its sides, ``Y Y^T`` and ``(...) Y`` cost 2 s^2 l each, ``A A`` 2 s^3."""
    short, long = min(m, n), max(m, n)
    return steps * (4.0 * short * short * long + 2.0 * short**3)

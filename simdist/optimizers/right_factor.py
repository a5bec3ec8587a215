"""The right factor of a low-rank spectral update: what becomes of ``W = M U`` before ``X <- X - lr U Vbar^T``.

W is ``[..., c, rows, r]``, its rows sharded. Each entry of :data:`RIGHT_FACTORS` is an algorithm with its FLOPs; a
new one joins by one line there and one in :data:`RightFactorName`. Bytes beyond Dion's factors, sent per worker and
matrix with F shards (4-byte statistics):

- ``qr_pos``: an r x r Gram all-reduce per pass, ``2 (F-1)/F 4 r^2``;
- ``colnorm``: an all-reduce of r squared column norms, ``2 (F-1)/F 4 r``;
- ``qr_raw``: an all-gather of W, ``(F-1)/F`` of F rows r factor numbers. For the record only.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from simdist.linalg.orthonormalize import nonzero, triangle
from simdist.program import Axis

RightFactorName = Literal["qr_pos", "colnorm", "qr_raw"]


class Factor(NamedTuple):
    """``update``: Vbar of the step, zero where there is nothing to go by; ``basis``: the V of the next step."""

    update: Tensor
    basis: Tensor


@dataclass(frozen=True)
class Setting:
    """What an algorithm may need besides W: full sizes of the matrix, the shard axis, passes of Cholesky-QR."""

    m: int
    n: int
    shards: Axis
    gram_passes: int


@dataclass(frozen=True)
class RightFactor:
    """``apply(W, V of the last step, setting)`` and ``flops(rows, r, setting)`` of one worker and matrix."""

    apply: Callable[[Tensor, Tensor, Setting], Awaitable[Factor]]
    flops: Callable[[int, int, Setting], float]


def _statistic(x: Tensor, like: Tensor) -> Tensor:
    # Statistics are squares: never below single precision on the wire, and what the run computes in above that.
    return x.to(torch.promote_types(like.dtype, torch.float32))


async def _qr_pos(w: Tensor, v: Tensor, setting: Setting) -> Factor:
    """Q of W = Q R with positive diag(R), by Cholesky-QR, so that no column points against W (card 1).

    <M, U Q^T> = trace(R): with signs left free, as Householder QR does, half of the columns would be ascent steps.
    One path on every mesh; Gram matrices are formed and factorised in float64. A second pass repairs the
    orthogonality that the first loses with the square of W's (column-scaled) condition.
    """
    # rounding of products of n terms, with a margin; in W, hence in the run's dtype
    noise = 4 * math.sqrt(setting.n) * torch.finfo(w.dtype).eps
    q = w.double()
    keep = torch.ones_like(w[..., :1, :], dtype=torch.bool)
    for _ in range(setting.gram_passes):
        gram = await setting.shards.sum(_statistic(q.mT @ q, like=w), part="gram", wire="statistics")
        factor = triangle(gram, setting.m, noise)
        q, keep = factor.solve(q), keep & factor.keep
    q = q.to(w.dtype)
    # A column of W that is no more than noise says nothing: it moves no parameter, and the basis keeps its old one.
    return Factor(torch.where(keep, q, torch.zeros_like(q)), torch.where(keep, q, v))


async def _colnorm(w: Tensor, v: Tensor, setting: Setting) -> Factor:
    """Dion's column normalisation, w_j / (||w_j|| + 1e-8); unit columns, but not orthogonal ones."""
    squares = _statistic(w.double().square().sum(dim=-2, keepdim=True), like=w)
    squares = await setting.shards.sum(squares, part="norms", wire="statistics")
    finite = torch.isfinite(squares).all(dim=-1, keepdim=True)
    scaled = torch.where(finite, w / (squares.sqrt() + 1e-8).to(w.dtype), torch.zeros_like(w))
    known = finite & (squares > 0).any(dim=-1, keepdim=True)
    return Factor(scaled, torch.where(known, scaled, v))


async def _qr_raw(w: Tensor, v: Tensor, setting: Setting) -> Factor:
    """Householder QR of the gathered W with its signs as they fall: the published failure, kept for the record."""
    whole = await setting.shards.all_gather(w, dim=-2, part="W")
    q = torch.linalg.qr(whole[..., : setting.m, :]).Q
    q = torch.where(nonzero(whole), q, torch.zeros_like(q))
    q = setting.shards.share(pad(q, (0, 0, 0, whole.shape[-2] - setting.m)), dim=-2)
    return Factor(q, torch.where(nonzero(whole), q, v))


RIGHT_FACTORS: dict[RightFactorName, RightFactor] = {
    # a pass: Gram 2 rows r^2, Cholesky r^3 / 3, triangular solve rows r^2
    "qr_pos": RightFactor(_qr_pos, lambda rows, r, s: s.gram_passes * (3.0 * rows * r * r + r**3 / 3)),
    # square, add, divide
    "colnorm": RightFactor(_colnorm, lambda rows, r, s: 3.0 * rows * r),
    # Householder QR with Q formed, of the whole W on every worker
    "qr_raw": RightFactor(_qr_raw, lambda rows, r, s: qr_flops(s.m, r)),
}


def qr_flops(rows: int, columns: int) -> float:
    """Operations of a Householder QR with Q formed: 2 n r^2 - 2/3 r^3 for R, and as many for Q."""
    return 4.0 * rows * columns**2 - 4.0 / 3.0 * columns**3

"""Leading singular pairs of a matrix, ``sum_{i <= k} u_i v_i^T``: exact by the SVD, or by randomised block Krylov.

``D = U_k V_k^T`` maximises ``<M, D>`` over ``{||D||_op <= 1, ||D||_* <= k}``, where it reaches the Ky Fan k norm (the
sum of the k largest singular values; card 7). With k the shorter side it is the polar factor, which Newton-Schulz
approximates.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from simdist.linalg.newton_schulz import frobenius_norm
from simdist.linalg.orthonormalize import nonzero


def leading_pairs(x: Tensor, k: int) -> Tensor:
    """Return ``U_k V_k^T`` of each matrix ``[..., m, n]``, k at most its shorter side.

    Singular values that are rounding noise beside the largest have no direction, and their pairs are left out: a
    matrix of rank below k gives a partial isometry of that rank, and zero stays zero. Rows of zeros stay rows of zeros,
    exactly. A matrix with numbers that are not finite gives NaN.
    """
    return _leading(x, k)[0]


def polar(x: Tensor) -> Tensor:
    """Return the polar factor ``U V^T = (M M^T)^(-1/2) M`` of each matrix ``[..., m, n]``, with the pseudo-inverse."""
    return leading_pairs(x, min(x.shape[-2:]))


class Krylov(NamedTuple):
    """``pairs``: an approximate ``U_k V_k^T`` [m, n]; ``basis``: right singular vectors [long, w], best first."""

    pairs: Tensor
    basis: Tensor


def krylov_leading_pairs(x: Tensor, k: int, start: Tensor, iterations: int) -> Krylov:
    """Return approximate leading pairs by randomised block Krylov (Musco & Musco, arXiv 1504.05477, algorithm 2).

    With A = M or M^T, whichever is wide, the pairs are the best inside the span of ``[A S, (A A^T) A S, ...,
    (A A^T)^q A S]``; each block is orthonormalised before the next product, which changes no span and saves precision.
    Where this span is everything the result is exact; always ``||D||_op = 1`` and ``||D||_* = k`` (for rank k or more).

    Args:
        x: matrices ``[..., m, n]``.
        k: number of pairs, at most the shorter side.
        start: S, ``[..., long, s]`` with long = max(m, n) and k <= s <= min(m, n).
        iterations: q, the number of further blocks; 0 is a plain randomised range finder.
    """
    tall = x.shape[-2] > x.shape[-1]
    norm = frobenius_norm(x)
    a = x / torch.where(norm > 0, norm, torch.ones_like(norm))
    a = a.mT if tall else a
    blocks = [torch.linalg.qr(a @ start).Q]
    for _ in range(iterations):
        blocks.append(torch.linalg.qr(a @ (a.mT @ blocks[-1])).Q)
    q = torch.linalg.qr(torch.cat(blocks, dim=-1)).Q
    pairs, right = _leading(q.mT @ a, k)
    pairs = q @ pairs
    pairs = pairs.mT if tall else pairs
    return Krylov(_zero_rows_stay(x, pairs), right)


def _leading(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return ``U_k V_k^T`` and all right singular vectors ``[..., n, min(m, n)]``."""
    finite = torch.isfinite(x).all(dim=-1, keepdim=True).all(dim=-2, keepdim=True)
    u, s, vt = torch.linalg.svd(torch.where(finite, x, torch.zeros_like(x)), full_matrices=False)
    noise = max(x.shape[-2:]) * torch.finfo(x.dtype).eps * s[..., :1]
    known = (s > noise)[..., :k]
    pairs = (u[..., :k] * known.unsqueeze(-2)) @ vt[..., :k, :]
    pairs = torch.where(finite, _zero_rows_stay(x, pairs), torch.full_like(x, torch.nan))
    return pairs, vt.mT


def _zero_rows_stay(x: Tensor, pairs: Tensor) -> Tensor:
    # U's rows vanish where x' do, but only up to rounding, and padding rows must never move
    rows = (x != 0).any(dim=-1, keepdim=True)
    return torch.where(rows & nonzero(x), pairs, torch.zeros_like(pairs))


def leading_pairs_flops(m: int, n: int, k: int) -> float:
    """Operations for one matrix: Golub-Reinsch's thin SVD, 14 l s^2 + 8 s^3 (l >= s its sides), and ``U_k V_k^T``."""
    short, long = min(m, n), max(m, n)
    return 14.0 * long * short**2 + 8.0 * short**3 + 2.0 * m * n * k


def krylov_flops(m: int, n: int, k: int, width: int, iterations: int) -> float:
    """Operations for one matrix with blocks of ``width`` columns: products, QRs, projection, small SVD, and D."""
    short, long = min(m, n), max(m, n)
    span = min((iterations + 1) * width, short)
    products = (2 * iterations + 1) * 2.0 * m * n * width
    factors = (iterations + 1) * _qr_flops(short, width) + _qr_flops(short, span)
    return products + factors + 4.0 * m * n * span + leading_pairs_flops(span, long, k)


def _qr_flops(rows: int, columns: int) -> float:
    # Householder with Q formed
    return 4.0 * rows * columns**2 - 4.0 / 3.0 * columns**3

"""QR of whole matrices with a positive diagonal of R, and the symmetric factors that are made from R.

Everything is float64 and takes any leading dimensions. LAPACK gives the same bits for the same bits, so that workers
who hold the same R (from an all-reduced Gram matrix) agree on its singular vectors without a broadcast.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from simdist.linalg.deciding import decide
from simdist.linalg.orthonormalize import among, precision_of


class PositiveQR(NamedTuple):
    """``W = Q R`` with positive diag(R), columns that say nothing left out.

    Attributes:
        q: ``[..., m, r]`` float64, orthonormal columns; zero where left out.
        upper: ``[..., r, r]`` float64, R; a row and column of the identity where left out.
        keep: ``[..., 1, r]`` False for columns left out.
    """

    q: Tensor
    upper: Tensor
    keep: Tensor


def positive_qr(w: Tensor, noise: float, blocks: bool = False) -> PositiveQR:
    """Return the QR of each ``w`` (``[..., m, r]``, r <= m) by Householder, with the signs of R's diagonal fixed.

    Left out are columns shorter than ``noise`` times the Frobenius norm, and columns that depend on those before
    them to within ``noise`` of their own length, or to within the number format in which they may have travelled
    (:func:`simdist.linalg.orthonormalize.precision_of`). Matrices that are not finite lose all columns. With ``blocks``
    the matrices are blocks of columns of one W, ``[..., blocks, m, r]``, whose norm counts.
    """
    one = (-3, -2, -1) if blocks else (-2, -1)
    finite = torch.isfinite(w).all(dim=-1, keepdim=True).all(dim=-2, keepdim=True)
    w = torch.where(finite, w, torch.zeros_like(w))
    tolerance = (4 * precision_of(w)).clamp(min=noise)
    w = w.double()
    largest = w.abs().amax(dim=one, keepdim=True)
    scale = torch.where(largest > 0, largest, torch.ones_like(largest))  # squares must neither overflow nor vanish
    columns = w / scale
    norms = torch.linalg.vector_norm(columns, dim=-2, keepdim=True)
    big = (norms > noise * torch.linalg.vector_norm(norms, dim=one, keepdim=True)) & finite
    q, upper = torch.linalg.qr(columns)
    diagonal = upper.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)
    signs = torch.where(diagonal >= 0, 1.0, -1.0).to(q)
    sound = (big & (diagonal.abs() > tolerance * norms)).all(dim=-1, keepdim=True)
    q, upper, keep = q * signs, upper * signs.mT, big
    # The branch saves time and decides nothing: sound matrices take the same values either way.
    if not decide(sound.all(), planned=True):
        careful = _one_by_one(columns, tolerance * norms, big)
        q, upper = torch.where(sound, q, careful.q), torch.where(sound, upper, careful.upper)
        keep = torch.where(sound, keep, careful.keep)
    return PositiveQR(torch.where(keep, q, torch.zeros_like(q)), among(keep, upper * scale), keep)


def _one_by_one(columns: Tensor, least: Tensor, big: Tensor) -> PositiveQR:
    """Gram-Schmidt, each column twice (which suffices), where a column left out does not bear on those after it."""
    q, kept = torch.zeros_like(columns), []
    for j in range(columns.shape[-1]):
        left = columns[..., j : j + 1]
        for _ in range(2):
            left = left - q @ (q.mT @ left)
        length = torch.linalg.vector_norm(left, dim=-2, keepdim=True)
        keep = big[..., j : j + 1] & (length > least[..., j : j + 1])
        q[..., j : j + 1] = torch.where(keep, left / torch.where(keep, length, 1.0), 0.0)
        kept.append(keep)
    return PositiveQR(q, q.mT @ columns, torch.cat(kept, dim=-1))


def polar_of(upper: Tensor) -> Tensor:
    """Return the orthogonal polar factor of each R: ``Q polar(R) = polar(Q R) = W (W^T W)^(-1/2)``."""
    left, _, right = torch.linalg.svd(upper)
    result: Tensor = left @ right
    return result


def interpolated(upper: Tensor, tau: float) -> Tensor:
    """Return ``R B^(-1/2)`` with ``B = (1-tau) diag(R^T R) + tau R^T R`` for each R, so that Q times it is W B^(-1/2).

    ``B^(-1/2)`` comes from the singular vectors of the two square roots of B's terms on top of each other, not from
    B, whose condition is squared.
    """
    norms = torch.linalg.vector_norm(upper, dim=-2)
    both = torch.cat([math.sqrt(1 - tau) * torch.diag_embed(norms), math.sqrt(tau) * upper], dim=-2)
    _, values, right = torch.linalg.svd(both, full_matrices=False)
    result: Tensor = upper @ (right.mT / values.unsqueeze(-2)) @ right
    return result

"""Orthonormal columns: a zero-safe QR, and a Cholesky factor of a Gram matrix that leaves dependent columns out.

All functions take any leading dimensions, and none lets one matrix of a stack influence another.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from simdist.linalg.deciding import decide


def orthonormalize(p: Tensor) -> Tensor:
    """Return orthonormal columns spanning those of each ``p`` (``[..., n, r]``, r <= n); all-zero matrices stay zero.

    Householder QR, hence the same answer for the same bits. Column signs are whatever Householder gives: they cancel
    in ``U Vbar^T``, as W = M U flips with U. microsoft/dion's randomised Cholesky-QR returns the same columns up to
    these signs, so its products are equal too; it is faster on GPUs, which changes no value that we look at.

    Trailing columns that are zero stay zero too: they are the padding of a stack whose matrices differ in rank.
    """
    q: Tensor = torch.linalg.qr(p).Q
    return torch.where(leading(p), q, torch.zeros_like(q))


def leading(x: Tensor) -> Tensor:
    """Return ``[..., 1, r]``: False for the zero columns at the end of each matrix, True for all before (NaN counts).

    >>> leading(torch.tensor([[0.0, 1.0, 0.0, 0.0]])).squeeze().tolist()
    [True, True, False, False]
    """
    columns = (x != 0).any(dim=-2, keepdim=True)
    return columns.flip(-1).cummax(dim=-1).values.flip(-1)


def nonzero(x: Tensor) -> Tensor:
    """Return ``[..., 1, 1]``: whether a matrix has any entry that is not zero (NaN counts)."""
    return (x != 0).any(dim=-1, keepdim=True).any(dim=-2, keepdim=True)


class Triangle(NamedTuple):
    """A Cholesky factor of a Gram matrix whose dependent columns are left out.

    Attributes:
        lower: ``[..., r, r]`` lower triangular with positive diagonal, float64; for a column left out, a unit column.
        weight: ``[..., 1, r]`` one over the column norms (zero for columns left out), float64.
        keep: ``[..., 1, r]`` False for columns left out.
        dependent: ``[..., 1, 1]`` whether W itself may tell more: some column was left out that is no mere noise, but
            depends on others to within the rounding of the Gram matrix, or the Gram matrix is not finite.
        precision: ``[..., 1, 1]`` relative rounding of the Gram matrix, see :func:`precision_of`.
    """

    lower: Tensor
    weight: Tensor
    keep: Tensor
    dependent: Tensor
    precision: Tensor

    @property
    def upper(self) -> Tensor:
        """R, ``[..., r, r]`` float64: ``W = Q R`` among the columns kept; of the others a row and column of identity.

        What the columns left out have along the others is not in it.
        """
        norms = torch.where(self.keep, 1 / torch.where(self.keep, self.weight, 1.0), 1.0)
        return among(self.keep, self.lower.mT * norms)

    @property
    def loss(self) -> Tensor:
        """How far Q^T Q may be from the identity, ``[..., 1, 1]``: rounding times the condition of the scaled W^T W."""
        scaled = among(self.keep, self.lower.mT)
        smallest = torch.linalg.svdvals(scaled)[..., -1:, None].square()
        # of a matrix that says nothing (zeros fit every number format), nothing can be lost
        return torch.where(self.keep.any(dim=-1, keepdim=True), self.precision / smallest, 0.0)

    def solve(self, w: Tensor) -> Tensor:
        """Return ``w R^-1`` (``R^T R`` the Gram matrix), float64, with zeros in the columns left out."""
        columns = w.double() * self.weight
        q = torch.linalg.solve_triangular(self.lower.mT, columns, upper=True, left=False)
        return torch.where(self.keep, q, torch.zeros_like(q))


def among(keep: Tensor, square: Tensor) -> Tensor:
    """Return ``square`` (``[..., r, r]``), its rows and columns those of the identity where ``keep`` is False.

    ``keep`` is ``[..., 1, r]``.
    """
    identity = torch.eye(square.shape[-1], dtype=square.dtype, device=square.device)
    return torch.where(keep & keep.mT, square, identity)


def precision_of(x: Tensor) -> Tensor:
    """Return ``[..., 1, 1]``: the unit roundoff of the coarsest number format that holds all of a matrix' entries.

    A statistic that travelled is no better than its wire format, which an update rule is not told.

    >>> float(precision_of(torch.tensor([[1 / 3]], dtype=torch.float64).float().double())) == 2.0**-23
    True
    """
    precision = torch.full_like(x[..., :1, :1], torch.finfo(x.dtype).eps, dtype=torch.float64)
    for coarser in (torch.float32, torch.float16, torch.bfloat16):
        held = (x.to(coarser).to(x.dtype) == x).all(dim=-1, keepdim=True).all(dim=-2, keepdim=True)
        precision = torch.where(held, torch.full_like(precision, torch.finfo(coarser).eps), precision)
    return precision


def triangle(gram: Tensor, length: int, noise: float, blocks: bool = False) -> Triangle:
    """Factorise a Gram matrix ``W^T W`` (``[..., r, r]``) so that ``W R^-1`` has orthonormal columns.

    Columns are first scaled to norm one, as Cholesky's error depends on the *scaled* condition: norms of Dion's
    right factor differ by factors up to 7000 (card 1), which costs nothing here. Left out are columns that are zero,
    that are rounding noise beside the largest, or that depend on those before them: their direction would be noise
    blown up to length one. Where a Gram matrix is not finite (its squares overflowed), all are left out.

    Args:
        gram: symmetric positive semidefinite up to rounding, in the numbers that travelled.
        length: rows of W, that is, how many products were summed in float64 for each entry.
        noise: columns of W shorter than this fraction of its Frobenius norm are rounding noise.
        blocks: the matrices are blocks of columns of one W, ``[..., blocks, r, r]``, whose norm counts.
    """
    low_rank = gram.shape[-1]
    precision = precision_of(gram).squeeze(-1)
    gram = gram.double()
    finite = torch.isfinite(gram).all(dim=-1, keepdim=True).all(dim=-2, keepdim=True)
    gram = torch.where(finite, gram, torch.zeros_like(gram))
    squares = gram.diagonal(dim1=-2, dim2=-1)
    big = squares > noise**2 * squares.sum(dim=(-2, -1) if blocks else -1, keepdim=True)
    weight = torch.where(big, squares, torch.ones_like(squares)).rsqrt() * big
    scaled = weight.unsqueeze(-1) * gram * weight.unsqueeze(-2)
    # columns left out become unit vectors: they neither break the factorisation nor touch the others
    scaled = scaled + torch.diag_embed((~big).double())
    # a squared sine below this is rounding of the Gram matrix, not a direction
    tolerance = low_rank * (precision + 10 * math.sqrt(length) * torch.finfo(torch.float64).eps)
    lower, failed = torch.linalg.cholesky_ex(scaled)
    pivots = lower.diagonal(dim1=-2, dim2=-1).square()
    sound = (failed == 0) & (pivots > tolerance).all(dim=-1)
    keep = big
    # The branch saves time and decides nothing: sound matrices take the same values either way, and Gram matrices
    # are replicated, so all workers go the same way.
    if not decide(sound.all(), planned=True):
        careful, independent = _cholesky_without_dependent_columns(scaled, tolerance)
        lower = torch.where(sound[..., None, None], lower, careful)
        keep = big & torch.where(sound[..., None], torch.ones_like(big), independent)
    dependent = (big & ~keep).any(dim=-1)[..., None, None] | ~finite
    return Triangle(lower, (weight * keep).unsqueeze(-2), keep.unsqueeze(-2), dependent, precision.unsqueeze(-1))


def _cholesky_without_dependent_columns(gram: Tensor, tolerance: Tensor) -> tuple[Tensor, Tensor]:
    """Cholesky column by column; a pivot at or below ``tolerance`` gets a unit column. Returns L and who is kept."""
    low_rank = gram.shape[-1]
    lower = torch.zeros_like(gram)
    kept = []
    for j in range(low_rank):
        left = gram[..., :, j] - (lower @ lower[..., j, :].unsqueeze(-1)).squeeze(-1)
        pivot = left[..., j]
        keep = pivot > tolerance.squeeze(-1)
        column = left * torch.where(keep, pivot, torch.ones_like(pivot)).rsqrt().unsqueeze(-1)
        below = torch.arange(low_rank, device=gram.device) >= j
        unit = torch.arange(low_rank, device=gram.device) == j
        lower[..., :, j] = torch.where(keep.unsqueeze(-1), column * below, unit.to(gram.dtype))
        kept.append(keep)
    return lower, torch.stack(kept, dim=-1)

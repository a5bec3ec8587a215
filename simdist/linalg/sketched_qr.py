"""Orthonormal columns by Cholesky, as microsoft/dion does on GPUs: randomised Cholesky-QR, and Cholesky-QR alone.

Both return with Q which matrices it is good for: Cholesky does not fail gracefully, and a caller needs another way.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sketch_rows(columns: int) -> int:
    """Return the rows of a sketch for matrices of this many columns: 1.25 times as many, in multiples of 128.

    >>> sketch_rows(16), sketch_rows(102), sketch_rows(103)
    (128, 128, 256)
    """
    return 128 * math.ceil(1.25 * columns / 128)


def sketched_qr(p: Tensor, sketch: Tensor) -> tuple[Tensor, Tensor]:
    """Return Q of each ``p`` (``[..., n, r]``) by RCQR, and whether it is orthonormal, ``[..., 1, 1]``.

    ``R1`` from the QR of ``S P``, ``P1 = P R1^-1``, ``R2 = chol(P1^T P1)``, ``Q = P1 R2^-1``, in single precision or
    better. Column signs are random, as R1's are. ``sketch``: S, ``[k, n]`` with entries of variance 1/k.
    """
    q = p.to(torch.promote_types(p.dtype, torch.float32))
    r1 = torch.linalg.qr(sketch.to(q) @ q, mode="r").R
    diagonal, columns = r1.diagonal(dim1=-2, dim2=-1).abs(), torch.linalg.vector_norm(r1, dim=-2)
    # where a column adds nothing to those before it, the solve would blow rounding up to length one
    regular = (diagonal > 10 * r1.shape[-1] * torch.finfo(q.dtype).eps * columns).all(dim=-1)[..., None, None]
    r1 = torch.where(regular, r1, torch.eye(r1.shape[-1], dtype=r1.dtype, device=r1.device))
    q, sound = cholesky_q(torch.linalg.solve_triangular(r1, q, upper=True, left=False))
    return q.to(p.dtype), regular & sound


def cholesky_q(p: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``P chol(P^T P)^-1`` of each ``p`` (``[..., n, r]``), and whether Cholesky went through, ``[..., 1, 1]``.

    Orthogonality is lost with the squared condition of P; it counts as failed where a pivot is rounding of the Gram
    matrix, whether or not that happens to be positive. Single precision or better.
    """
    q = p.to(torch.promote_types(p.dtype, torch.float32))
    gram = q.mT @ q
    lower, failed = torch.linalg.cholesky_ex(gram)
    tolerance = 10 * gram.shape[-1] * torch.finfo(q.dtype).eps * gram.diagonal(dim1=-2, dim2=-1)
    sound = ((failed == 0) & (lower.diagonal(dim1=-2, dim2=-1).square() > tolerance).all(dim=-1))[..., None, None]
    sound = sound & torch.isfinite(lower).all(dim=-1, keepdim=True).all(dim=-2, keepdim=True)
    lower = torch.where(sound, lower, torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device))
    return torch.linalg.solve_triangular(lower.mT, q, upper=True, left=False).to(p.dtype), sound

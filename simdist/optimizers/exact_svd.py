"""The r largest singular pairs of a sharded matrix, exactly: the oracle that power steps are measured against (card 1).

``D = sum of u_i v_i^T`` over the r largest singular values solves the problem that Dion's steps approximate: it has
operator norm one and <M, D> = KF_r(M), the Ky Fan norm. Two forms, as Muon's (card 5), with F shards, b bytes a number,
sent per worker and matrix m x n:

- every worker gathers M and repeats the decomposition: ``(F-1)/F m n b``;
- owners take M, ``(F-1)/F^2 m n b``, and give back both factors: the one on the side of n to everybody,
  ``(F-1)/F n r b``, of the other everybody's rows, ``(F-1)/F^2 m r b``.

Without shards M is whole everywhere: nothing travels, or the replicas share the work and gather ``(W-1)/W (m+n) r b``.
Each replica must hold the same M, that is, gradients averaged over replicas.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from simdist.optimizers.sharded_qr import Place


class Pairs(NamedTuple):
    """Singular pairs in falling order of singular value.

    Attributes:
        left: ``[..., c, n, r]``, whole on every worker; zero where left out.
        right: ``[..., c, rows, r]``, this worker's rows; zero where left out.
        keep: like ``right``: False for pairs left out, whose singular value is rounding noise.
        squares: ``[..., c, 1, r]`` squared singular values, or None where only owners know them.
    """

    left: Tensor
    right: Tensor
    keep: Tensor
    squares: Tensor | None


async def exact_svd(matrix: Tensor, low_rank: int, owners: bool, place: Place) -> Pairs:
    """Return the ``low_rank`` largest pairs of each M (``[..., c, rows, n]``, this worker's rows).

    Matrices that are not finite get NaN, so that the run notices. Signs and, between equal singular values, rotations
    are LAPACK's; they are the same on all workers, as the bits of M are, and cancel in D.
    """
    shards, replicas, noise = place.shards, place.worker.mesh.replicas, place.noise(matrix)
    if not owners:
        whole = await shards.all_gather(matrix, dim=-2, part="M")
        right, left, squares = _pairs(whole, low_rank, noise, place.m)
        right = shards.share(right, dim=-2)
        found: Tensor | None = squares
    elif shards.size > 1:
        whole = await shards.all_to_all(matrix, split_dim=-3, concat_dim=-2, part="M")
        right, left, _ = _pairs(whole, low_rank, noise, place.m)
        left = await shards.all_gather(left, dim=-3, part="U")
        right = await shards.all_to_all(right, split_dim=-2, concat_dim=-3, part="Vbar")
        found = None
    else:
        right, left, _ = _pairs(replicas.share(matrix, dim=-3), low_rank, noise, place.m)
        left = await replicas.all_gather(left, dim=-3, part="U")
        right = await replicas.all_gather(right, dim=-3, part="Vbar")
        found = None
    # a pair that was left out is zero on the side that is whole everywhere
    keep = ((left != 0).any(dim=-2, keepdim=True)).expand_as(right)
    return Pairs(left, right, keep, found)


def _pairs(whole: Tensor, low_rank: int, noise: float, m: int) -> tuple[Tensor, Tensor, Tensor]:
    matrix = whole[..., :m, :].double()
    finite = torch.isfinite(matrix).all(dim=-1, keepdim=True).all(dim=-2, keepdim=True)
    u, values, vt = torch.linalg.svd(torch.where(finite, matrix, torch.zeros_like(matrix)), full_matrices=False)
    values = values[..., None, :low_rank]
    keep = values > noise * torch.linalg.vector_norm(values, dim=-1, keepdim=True)
    nothing = torch.where(finite, 0.0, torch.nan).to(matrix)
    right = torch.where(keep, u[..., :low_rank], nothing).to(whole.dtype)
    left = torch.where(keep, vt.mT[..., :low_rank], nothing).to(whole.dtype)
    return pad(right, (0, 0, 0, whole.shape[-2] - m)), left, values.square()


def exact_svd_flops(place: Place, owners: bool) -> float:
    """Operations of one worker and matrix: 6 l s^2 + 20 s^3 for sides s <= l, both factors formed.

    This is Golub and Van Loan's count for the reduced decomposition by a QR first (Matrix Computations, section 8.6).
    """
    short, long = min(place.m, place.n), max(place.m, place.n)
    shared = place.worker.mesh.shards.size if place.shards.size > 1 else place.worker.mesh.replicas.size
    return (6.0 * long * short**2 + 20.0 * short**3) / (shared if owners else 1)

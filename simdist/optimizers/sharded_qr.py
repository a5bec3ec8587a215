"""QR with a positive diagonal of matrices whose rows are sharded: by Gram matrices, or by owners (card 1, (b)).

Sent per worker and matrix with F shards, w bytes a statistic, b a factor number:

- Gram matrices, all-reduced: ``2 (F-1)/F w r^2`` a pass. Q and W stay where they are. Orthogonality is lost with the
  square of W's (column-scaled) condition; a second pass repairs it.
- all-to-all: owners of whole matrices take W and give back what they make of it, ``2 (F-1)/F^2 m r b``. Less than one
  Gram pass when ``m b < F r w``.

After the all-reduce the bits of a Gram matrix are the same on all workers, and so is all that is computed from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from simdist.linalg.deciding import decide
from simdist.linalg.orthonormalize import Triangle, among, triangle
from simdist.linalg.positive_qr import PositiveQR, positive_qr
from simdist.program import Axis, Worker

GramPasses = Literal[1, 2, "auto"]

#: ``gram_passes="auto"`` takes a second pass where ``|Vbar^T Vbar - I|`` may exceed this after one (card 1, test 1)
ORTHOGONALITY = 1e-5


class Place(NamedTuple):
    """Where a stack of W stands: full sides of its matrices, this worker's handle, and how many matrices are in it."""

    m: int
    n: int
    matrices: int
    worker: Worker

    @property
    def shards(self) -> Axis:
        return self.worker.mesh.shards

    def noise(self, w: Tensor) -> float:
        """Rounding of products of n terms in ``w``'s dtype, relative, with a margin."""
        return 4 * math.sqrt(self.n) * torch.finfo(w.dtype).eps


class ShardedQR(NamedTuple):
    """:class:`simdist.linalg.positive_qr.PositiveQR` with this worker's rows of q, and squared column norms of W."""

    q: Tensor
    upper: Tensor
    keep: Tensor
    squares: Tensor


def statistic(x: Tensor, like: Tensor) -> Tensor:
    """Return squares as they travel: never below single precision, and what the run computes in above that."""
    return x.to(torch.promote_types(like.dtype, torch.float32))


async def gram_qr(w: Tensor, passes: GramPasses, place: Place, blocks: bool = False) -> ShardedQR:
    """Return the QR of W (``[..., rows, r]``, rows sharded) by Cholesky factors of Gram matrices, in float64.

    ``"auto"`` decides by the first Gram matrix of the whole stack, which all workers hold alike: one pass where that
    keeps :data:`ORTHOGONALITY`; a second one (part ``gram again``) where it does not; and where Cholesky meets columns
    that depend on each other to within the rounding of the Gram matrix, the QR of W itself, gathered (part ``W``).
    Bytes then follow the data. Rounding differs between engines, so that they may decide differently on the very edge.
    With ``blocks`` W comes as blocks of columns, ``[..., c, blocks, rows, r]``, each with a QR of its own.
    """
    first, squares = await _pass(w.double(), w, place, blocks, "gram")
    q, upper, keep = first.solve(w), first.upper, first.keep
    again = passes == 2
    if passes == "auto":
        if decide(first.dependent.any(), planned=False):
            return await _gathered(w, squares, place, blocks)
        again = decide((first.loss > ORTHOGONALITY).any(), planned=False)
        if again:
            count = place.matrices * (w.shape[-3] if blocks else 1)
            await place.worker.compute(count * pass_flops(w.shape[-2], w.shape[-1]), "right factor")
    if again:
        part = "gram" if passes == 2 else "gram again"
        second, _ = await _pass(q, w, place, blocks, part)
        q, upper, keep = second.solve(q), second.upper @ upper, keep & second.keep
    return ShardedQR(torch.where(keep, q, torch.zeros_like(q)), among(keep, upper), keep, squares)


async def _pass(q: Tensor, w: Tensor, place: Place, blocks: bool, part: str) -> tuple[Triangle, Tensor]:
    gram = await place.shards.sum(statistic(q.mT @ q, like=w), part=part, wire="statistics")
    return triangle(gram, place.m, place.noise(w), blocks), gram.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)


async def _gathered(w: Tensor, squares: Tensor, place: Place, blocks: bool) -> ShardedQR:
    count = place.matrices * (w.shape[-3] if blocks else 1)
    await place.worker.compute(count * qr_flops(place.m, w.shape[-1]), "right factor")
    whole = await place.shards.all_gather(w, dim=-2, part="W")
    result = positive_qr(whole[..., : place.m, :], place.noise(w), blocks)
    q = place.shards.share(pad(result.q, (0, 0, 0, whole.shape[-2] - place.m)), dim=-2)
    return ShardedQR(q, result.upper, result.keep, squares)


async def by_owners(w: Tensor, make: Callable[[PositiveQR], Tensor], place: Place) -> tuple[Tensor, Tensor]:
    """Return this worker's rows of ``make(QR of W)``, and which of its entries belong to columns that are kept.

    Each member of the shard group does whole matrices of the stack. Without shards W is whole already, and every
    replica does all of them.
    """
    shards, low_rank = place.shards, w.shape[-1]
    whole = await shards.all_to_all(w, split_dim=-3, concat_dim=-2, part="W")
    qr = positive_qr(whole[..., : place.m, :], place.noise(w))
    # No factor made here has an entry above sqrt(r), so that larger ones can say which columns were left out.
    bound = math.sqrt(low_rank)
    marked = torch.where(qr.keep, make(qr), 2 * bound).to(w.dtype)
    marked = pad(marked, (0, 0, 0, whole.shape[-2] - place.m))
    back = await shards.all_to_all(marked, split_dim=-2, concat_dim=-3, part="Vbar")
    kept = back < 1.5 * bound
    return torch.where(kept, back, torch.zeros_like(back)), kept


def pass_flops(rows: int, columns: int) -> float:
    """Operations of a pass of Cholesky-QR: Gram 2 rows r^2, Cholesky r^3 / 3, triangular solve rows r^2."""
    return 3.0 * rows * columns**2 + columns**3 / 3


def qr_flops(rows: int, columns: int) -> float:
    """Operations of a Householder QR with Q formed: 2 n r^2 - 2/3 r^3 for R, and as many for Q."""
    return 4.0 * rows * columns**2 - 4.0 / 3.0 * columns**3

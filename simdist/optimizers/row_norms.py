"""Row normalisation of an orthogonalised momentum, as NorMuon and Dion3 have it (arXiv 2510.05491, card 6)."""

from __future__ import annotations

import torch
from torch import Tensor

from simdist.program import Worker

#: what is added to norms before dividing by them
EPS = 1e-8


def normalised_rows(o: Tensor, row_squares: Tensor, beta2: float) -> tuple[Tensor, Tensor]:
    """Divide every row by its running root mean square.

    Args:
        o: ``[..., rows, n]``.
        row_squares: running means of squares ``[..., rows, 1]``, updated as ``beta2 v + (1 - beta2) mean square``.

    Returns:
        the divided rows, and the new running means.
    """
    new = beta2 * row_squares + (1 - beta2) * o.square().mean(dim=-1, keepdim=True)
    return o / (new.sqrt() + EPS), new


async def frobenius_norms(parts: list[Tensor], exact: bool, worker: Worker) -> tuple[Tensor, ...]:
    """Return the norm of each part, ``[..., 1, 1]``: of whole matrices if ``exact``, else of this worker's rows.

    All norms travel in one all-reduce over shards, a statistic each.
    """
    squares = torch.cat([part.square().sum(dim=(-2, -1), keepdim=True) for part in parts], dim=-1)
    if exact:
        # never below single precision on the wire, and what the run computes in above that
        squares = squares.to(torch.promote_types(squares.dtype, torch.float32))
        squares = await worker.mesh.shards.sum(squares, part="norms", wire="statistics")
    norms: tuple[Tensor, ...] = squares.sqrt().to(parts[0].dtype).split(1, dim=-1)
    return norms

"""Dion3, also called NorDion2 (microsoft/dion ``nordion2.py``): Dion2 on rows, rows normalised (cards 4, 6).

With O the orthogonalised rows, in full size ``[c, rows, n]`` and zero elsewhere, and v one number a row:

    s = mean over columns of O^2;  v[I] <- beta2 v[I] + (1 - beta2) s[I]
    O <- O / (sqrt(v) + 1e-8), rescaled to the Frobenius norm that it had

v belongs to rows, so shards need nothing of each other for it. The rescaling does, as in NorMuon: ``rescale="exact"``
keeps the norm of the whole matrix by an all-reduce of two statistics, ``2 (F-1)/F * 2 c`` numbers per worker;
``rescale="shard"`` keeps each shard's own, as microsoft/dion does, sends nothing, and depends on the number of shards.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from simdist.optimizers.row_norms import EPS, frobenius_norms, normalised_rows
from simdist.optimizers.rule import Decay, Stack, optimizers
from simdist.optimizers.submatrix import Submatrix
from simdist.program import Worker


class Dion3State(NamedTuple):
    """``momentum`` as in Dion2 ``[c, rows, n]``; ``row_squares``: v ``[c, rows, 1]``; this worker's rows."""

    momentum: Tensor
    row_squares: Tensor


@optimizers.register("dion3")
class Dion3(Submatrix):
    """Dion3 (NorDion2): Dion2's largest rows with NorMuon's row normalisation (microsoft/dion nordion2.py).

    As Dion2 with rows everywhere and ``mu`` for ``ef_decay``; the orthogonalised rows are divided by the root of
    ``v <- beta2 v + (1 - beta2) mean square`` and rescaled to keep their Frobenius norm. The defaults are those of
    microsoft/dion's class, but for ``rescale``. The source is that code: whether the paper of Dion2 (arXiv 2512.16928)
    describes this variant is unconfirmed.
    """

    name: str = "dion3"
    mu: Decay = 0.95
    beta2: Decay = 0.95
    rescale: Literal["shard", "exact"] = "exact"

    @property
    def kept(self) -> float:
        return self.mu

    def takes_rows(self, stack: Stack) -> bool:
        return True

    def init(self, stack: Stack, x: Tensor, worker: Worker) -> Dion3State:
        return Dion3State(torch.zeros_like(x), torch.zeros_like(x[..., :1]))

    async def finished(
        self, stack: Stack, orthogonal: Tensor, chosen: Tensor, state: Any, worker: Worker
    ) -> tuple[Tensor, Any]:
        # square, mean, quotient, two norms, and the rescaling
        await worker.compute(8.0 * stack.local_numel, "row_normalisation")
        normalised, row_squares = normalised_rows(orthogonal, state.row_squares, self.beta2)
        before, after = await frobenius_norms([orthogonal, normalised], self.rescale == "exact", worker)
        direction = normalised * (before / after.clamp(min=EPS))
        return direction, state._replace(row_squares=torch.where(chosen, row_squares, state.row_squares))

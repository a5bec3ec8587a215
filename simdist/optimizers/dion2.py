"""Dion2 (arXiv 2512.16928; microsoft/dion ``dion2.py``): see submatrix.py for the machinery (card 4)."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from simdist.optimizers.rule import Decay, Stack, optimizers
from simdist.optimizers.submatrix import Submatrix
from simdist.program import Worker


class Dion2State(NamedTuple):
    """``momentum``: sum of gradients, with the chosen slices decayed; this worker's rows."""

    momentum: Tensor


@optimizers.register("dion2")
class Dion2(Submatrix):
    """Dion2: the largest rows or columns of the momentum, orthogonalised as in Muon (arXiv 2512.16928).

    ``M <- M + G``; I = the ``fraction`` of M's slices with the largest L1 norms; ``X[I] <- X[I] - lr scale
    orth(M[I])``; ``M[I] <- ef_decay M[I]``. Slices are rows where matrices are sharded, else along the shorter side;
    ``select_dim="rows"`` takes rows everywhere, so that ``scope="global"`` gives one result on all meshes. With
    ``fraction=1`` this is Muon without Nesterov, ``convention="sum"`` and mu = ``ef_decay``. Defaults are those of
    microsoft/dion's class (its configurations have a fraction of 0.5 too); ``ns_dtype="bfloat16"`` is its precision.
    """

    name: str = "dion2"
    ef_decay: Decay = 0.95
    select_dim: Literal["auto", "rows"] = "auto"

    @property
    def kept(self) -> float:
        return self.ef_decay

    def takes_rows(self, stack: Stack) -> bool:
        m, n = stack.shape
        return self.select_dim == "rows" or stack.mesh.shards > 1 or m <= n

    def init(self, stack: Stack, x: Tensor, worker: Worker) -> Dion2State:
        return Dion2State(torch.zeros_like(x))

    async def finished(
        self, stack: Stack, orthogonal: Tensor, chosen: Tensor, state: Any, worker: Worker
    ) -> tuple[Tensor, Any]:
        return orthogonal, state

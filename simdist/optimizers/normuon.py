"""NorMuon (Li et al., arXiv 2510.05491; card 6): Muon, then every row divided by its running root mean square.

With O the orthogonalised momentum and s the mean of its squares over the columns,
``v <- b2 v + (1-b2) s``; ``Ohat = O / (sqrt(v) + 1e-8)``; no bias correction. Ohat is then brought to a Frobenius norm:

- ``variant="code"`` (microsoft/dion): that of O, so that Muon's scales apply;
- ``variant="paper"``: ``sqrt(min(m, n))``, which an exactly orthogonal O has. With ``scale="rms"`` this is the paper's
  ``X <- X - .2 lr sqrt(mn) / ||Ohat||_F Ohat``.

Traffic is Muon's, as v belongs to rows. The norms are of whole matrices: ``rescale="exact"`` all-reduces them over
shards, ``2 (F-1)/F`` of two statistics a matrix (one in the paper's variant); ``rescale="shard"`` takes each shard's
own, as microsoft/dion does, sends nothing, and computes other values on other numbers of shards.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from pydantic import model_validator
from torch import Tensor

from simdist.linalg.newton_schulz import CoefficientSet
from simdist.optimizers.muon import MuonBase
from simdist.optimizers.row_norms import EPS, frobenius_norms, normalised_rows
from simdist.optimizers.rule import Decay, Stack, optimizers
from simdist.optimizers.spectral import Scale, update_scale
from simdist.program import Worker


class NorMuonState(NamedTuple):
    """This worker's rows: ``momentum`` [c, rows, n] and ``row_squares``, the running mean v [c, rows, 1]."""

    momentum: Tensor
    row_squares: Tensor


@optimizers.register("normuon")
class NorMuon(MuonBase):
    """Muon with every row divided by its running root mean square (arXiv 2510.05491).

    ``X <- (1 - lr wd) X - lr scale Ohat``. The defaults are those of microsoft/dion's NorMuon, but for ``rescale``.
    """

    name: str = "normuon"
    convention: Literal["sum", "ema"] = "sum"
    nesterov: bool = False
    coefficients: CoefficientSet = "polar_express"
    scale: Scale = "spectral"
    beta2: Decay = 0.95
    variant: Literal["code", "paper"] = "code"
    rescale: Literal["shard", "exact"] = "exact"

    @model_validator(mode="after")
    def _paper_is_exact(self) -> NorMuon:
        if self.variant == "paper" and self.rescale == "shard":
            raise ValueError(
                "got rescale=shard beside variant=paper, whose norm is that of the whole matrix; expected "
                "rescale=exact, or variant=code"
            )
        return self

    def init(self, stack: Stack, x: Tensor, worker: Worker) -> NorMuonState:
        return NorMuonState(torch.zeros_like(x), torch.zeros_like(x[..., :1]))

    async def update(
        self, stack: Stack, x: Tensor, grad: Tensor, state: Any, lr: float, worker: Worker
    ) -> tuple[Tensor, NorMuonState]:
        momentum, direction = self.accumulate(state.momentum, grad)
        o = await self.whole_update(stack, direction, worker)
        # mean of squares, quotient, two norms, and the step's three
        await worker.compute(10.0 * stack.local_numel, "normuon")
        normalised, row_squares = normalised_rows(o, state.row_squares, self.beta2)

        m, n = stack.shape
        step = lr * update_scale(self.scale, m, n, min(m, n)) * await self._factor(stack, o, normalised, worker)
        return self.decayed(stack, x, lr) - step * normalised, NorMuonState(momentum, row_squares)

    async def _factor(self, stack: Stack, o: Tensor, normalised: Tensor, worker: Worker) -> Tensor:
        """Return what Ohat is multiplied by to have its norm, ``[..., c, 1, 1]``."""
        if self.variant == "paper":
            (norm,) = await frobenius_norms([normalised], exact=True, worker=worker)
            return math.sqrt(min(stack.shape)) / norm.clamp(min=EPS)
        norm, wanted = await frobenius_norms([normalised, o], self.rescale == "exact", worker)
        return wanted / norm.clamp(min=EPS)

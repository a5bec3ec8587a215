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
from simdist.optimizers.rule import Decay, Stack, optimizers
from simdist.optimizers.spectral import Scale, update_scale
from simdist.program import Worker

#: both of microsoft/dion: beside the root mean square, and the least norm that is divided by
EPS = 1e-8


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
        row_squares = self.beta2 * state.row_squares + (1 - self.beta2) * o.square().mean(dim=-1, keepdim=True)
        normalised = o / (row_squares.sqrt() + EPS)

        m, n = stack.shape
        step = lr * update_scale(self.scale, m, n, min(m, n)) * await self._factor(stack, o, normalised, worker)
        return self.decayed(stack, x, lr) - step * normalised, NorMuonState(momentum, row_squares)

    async def _factor(self, stack: Stack, o: Tensor, normalised: Tensor, worker: Worker) -> Tensor:
        """Return what Ohat is multiplied by to have its norm, ``[..., c, 1, 1]``."""
        parts = [normalised] if self.variant == "paper" else [normalised, o]
        squares = torch.cat([part.square().sum(dim=(-2, -1), keepdim=True) for part in parts], dim=-1)
        if self.rescale == "exact":
            # never below single precision on the wire, and what the run computes in above that
            squares = squares.to(torch.promote_types(o.dtype, torch.float32))
            squares = await worker.mesh.shards.sum(squares, part="norms", wire="statistics")
        norms = squares.sqrt().to(o.dtype)
        wanted = norms[..., 1:] if self.variant == "code" else math.sqrt(min(stack.shape))
        return wanted / norms[..., :1].clamp(min=EPS)

"""How persistent the gradient is along each mode of a low-rank factor, and the error feedback it asks for (card 2, V3).

Mode i of a matrix is column u_i of U; its gradient is ``q_i = G u_i``. V3 compares q_i with that of the step before:

    rho_i = cos(q_i now, q_i last step),  mean_i <- a mean_i + (1 - a) rho_i
    b = sigmoid(sharpness mean);  b <- b base / mean(b), cut to [0.05, 0.95]

and clears the share b_i of what was captured along u_i. V3 pairs modes by index, although U turns from step to step and
Householder QR leaves its signs free, so that rho_i mixes directions (card 2). With ``align`` modes are paired by the
overlap of their directions, and signs are followed: U is whole on every worker, so this sends nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

#: lengths below this count as this in a cosine, as in ``torch.nn.functional.cosine_similarity``
SHORT = 1e-8


class Modes(NamedTuple):
    """What is remembered of the modes of a stack.

    ``direction``: q_i over its length, this worker's rows [c, rows, k]. ``persistence``: running means of rho [c, k].
    ``left``: U of the last step [c, n, k], or [c, 0, k] where modes are not aligned. ``known`` [c], boolean: whether
    there is a last step to compare with.
    """

    direction: Tensor
    persistence: Tensor
    left: Tensor
    known: Tensor


class Match(NamedTuple):
    """For each mode the index of its mode of the last step, and the sign between them, ``[..., c, k]`` each."""

    source: Tensor
    sign: Tensor

    def columns(self, x: Tensor) -> Tensor:
        """Return columns of ``x`` (``[..., c, rows, k]``) of the last step in the order and with the signs of now."""
        index = self.source.unsqueeze(-2).expand(x.shape)
        return x.gather(-1, index) * self.sign.to(x.dtype).unsqueeze(-2)


def matched(before: Tensor, now: Tensor, active: Tensor) -> Match:
    """Pair the columns of two U (``[..., c, n, k]``), the largest |<u_i before, u_j now>| first, one to one.

    ``active`` ``[..., c, k]`` says which columns take part; the others are paired with themselves.

    >>> turned = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])[None]
    >>> [x.tolist() for x in matched(torch.eye(2)[None], turned, torch.ones(1, 2, dtype=torch.bool))]
    [[[1, 0]], [[-1.0, 1.0]]]
    """
    overlap = before.double().mT @ now.double()
    k = overlap.shape[-1]
    open_pairs = torch.where(active.unsqueeze(-1) & active.unsqueeze(-2), overlap.abs(), -1.0)
    columns = torch.arange(k, device=now.device)
    index = columns.expand(active.shape).clone()
    sign = torch.ones_like(overlap[..., 0, :])
    for _ in range(k):
        best, at = open_pairs.flatten(-2).max(dim=-1, keepdim=True)
        old, new = at // k, at % k
        here = (columns == new) & (best >= 0)
        index = torch.where(here, old, index)
        negative = overlap.flatten(-2).gather(-1, at) < 0
        sign = torch.where(here & negative, -1.0, sign)
        taken = ((columns == old).unsqueeze(-1) | (columns == new).unsqueeze(-2)) & (best >= 0).unsqueeze(-1)
        open_pairs = torch.where(taken, -1.0, open_pairs)
    return Match(index, sign)


def cleared_shares(persistence: Tensor, active: Tensor, base: float, sharpness: float) -> Tensor:
    """Return b, ``[..., c, k]``: the share of what was captured along each mode that error feedback clears.

    The mean is over active columns; before the cut it is ``base``.
    """
    b = torch.where(active, torch.sigmoid(sharpness * persistence), 0.0)
    mean = b.sum(dim=-1, keepdim=True) / active.sum(dim=-1, keepdim=True).clamp(min=1)
    return (b * (base / mean.clamp(min=0.01))).clamp(0.05, 0.95)

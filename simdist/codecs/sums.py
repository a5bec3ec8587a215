"""Sums over a message whose bits depend on its numbers alone, not on the layout or on other messages."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad


def tree_sum(x: Tensor) -> Tensor:
    """Sum the last dimension of ``[..., length]`` by halves, in float64; returns ``[...]``.

    torch's own sums add in an order that depends on strides and on the other dimensions, so that a worker alone and
    the same worker in a cohort would send different scales.
    """
    x = x.double()
    while x.shape[-1] > 1:
        x = pad(x, (0, x.shape[-1] % 2))
        low, high = x.chunk(2, -1)
        x = low + high
    return x[..., 0]

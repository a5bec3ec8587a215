"""Orthonormal discrete cosine transform (DCT-II) of blocks, as products with its matrix."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=16)
def _basis(size: int) -> Tensor:
    k = torch.arange(size, dtype=torch.float64)
    basis = torch.cos(math.pi / size * (k + 0.5) * k[:, None]) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis


def dct(x: Tensor, dims: int) -> Tensor:
    """Transform the last ``dims`` (1 or 2) dimensions of ``x`` to coefficients of the same shape.

    >>> x = torch.arange(12, dtype=torch.float64).reshape(3, 4)
    >>> bool(torch.allclose(idct(dct(x, 2), 2), x))
    True
    """
    y = x @ _basis(x.shape[-1]).to(x).mT
    return _basis(x.shape[-2]).to(x) @ y if dims == 2 else y


def idct(x: Tensor, dims: int) -> Tensor:
    """Undo :func:`dct`."""
    y = x @ _basis(x.shape[-1]).to(x)
    return _basis(x.shape[-2]).to(x).mT @ y if dims == 2 else y

"""Counting the operations of a piece of torch code while it runs, for optimizers whose formula we do not know.

Matrix products and convolutions are counted as ``torch.utils.flop_counter`` does, decompositions by the leading terms
of Golub & Van Loan, *Matrix Computations* (4th ed.; table 5.5.1, and sections 4.2, 5.2, 8.3 and 8.6), and everything
that acts number by number as one operation per number (three for addcmul, addcdiv and lerp, two for ``x + alpha y``),
roots and quotients included. Moving numbers is free.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

#: operations per number of one of torch's fused optimizer kernels, which run Adam's formula or a simpler one
_FUSED = 15

_REDUCTION = getattr(torch.Tag, "reduction", None)
_FREE = {torch.ops.aten.clone, torch.ops.aten._to_copy}


def _qr(m: int, n: int) -> float:
    """R by Householder, and Q formed from it."""
    k = min(m, n)
    return 4.0 * m * n * k - 2.0 * (m + n) * k**2 + 4.0 * k**3 / 3


def _svd(m: int, n: int) -> float:
    """Both thin factors, by R-SVD."""
    long, short = max(m, n), min(m, n)
    return 6.0 * long * short**2 + 20.0 * short**3


#: decompositions: operations of one m x n matrix
_MATRIX: dict[Any, Callable[[int, int], float]] = {
    torch.ops.aten.linalg_qr: _qr,
    torch.ops.aten.linalg_householder_product: lambda m, n: _qr(m, n) / 2,
    torch.ops.aten.geqrf: lambda m, n: _qr(m, n) / 2,
    torch.ops.aten._linalg_svd: _svd,
    torch.ops.aten._linalg_eigh: lambda m, n: 9.0 * n**3,
    torch.ops.aten.linalg_cholesky_ex: lambda m, n: n**3 / 3,
    torch.ops.aten.linalg_inv_ex: lambda m, n: 2.0 * n**3,
    torch.ops.aten.linalg_lu_factor_ex: lambda m, n: 2.0 * n**3 / 3,
}


#: torch's operations that do several things to each number
_SEVERAL = {"addcmul": 3, "addcdiv": 3, "lerp": 3}


class Operations(TorchDispatchMode):
    """Counts the operations of what runs inside ``with Operations() as count``, in ``count.total``.

    Args:
        shape: count what is done to tensors of this shape only; None: to all but scalars, which are counters and rates.
    """

    def __init__(self, shape: tuple[int, ...] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own, unannotated
        self.shape = shape
        self.total = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self.total += self._operations(func, args, kwargs, out)
        return out

    def _operations(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> float:
        packet = func.overloadpacket
        if packet in flop_registry:
            return float(flop_registry[packet](*args, **kwargs, out_val=out))
        if packet in _MATRIX:
            *batch, m, n = args[0].shape
            return float(math.prod(batch) * _MATRIX[packet](m, n))
        if packet is torch.ops.aten._linalg_solve_ex:
            n, columns = args[0].shape[-1], _columns(args[1], args[0])
            return float(2.0 * n**3 / 3 + 2.0 * n**2 * columns)
        if packet is torch.ops.aten.linalg_solve_triangular:
            return float(args[0].shape[-1] * args[1].numel())
        name = packet.__name__
        if packet in _FREE or name.startswith(("_foreach_copy", "_foreach_zero")):
            return 0.0
        if name.startswith("_fused_"):
            return float(_FUSED * sum(map(self._size, args[0])))
        bare = name.removeprefix("_foreach_")
        # ``x + alpha y`` is a product and a sum
        each = _SEVERAL.get(bare.rstrip("_"), 2 if kwargs.get("alpha", 1) != 1 else 1)
        if bare != name:
            return float(each * sum(map(self._size, args[0])))
        if torch.Tag.pointwise in func.tags:
            return float(each * self._size(out))
        # a sum over numbers takes as many operations as there are numbers
        return float(self._size(args[0])) if args and _REDUCTION in func.tags else 0.0

    def _size(self, x: Any) -> int:
        if not isinstance(x, Tensor):
            return 0
        counts = x.ndim > 0 if self.shape is None else x.shape == self.shape
        return x.numel() if counts else 0


def _columns(right: Tensor, left: Tensor) -> int:
    return right.shape[-1] if right.ndim == left.ndim else 1

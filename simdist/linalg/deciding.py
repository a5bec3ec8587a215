"""Values that steer a program: the one place where a tensor's content becomes a branch or a shape."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor

T = TypeVar("T", bool, int)


def decide(x: Tensor, planned: T) -> T:
    """Return what a tensor of one number says, as a truth or a whole number (as ``planned`` is).

    On the meta device tensors have shapes but no values. There this is ``planned``: what ``simdist plan`` assumes,
    which should be what is usual: well-conditioned matrices, no fall-back, ranks as they start.

    >>> import torch
    >>> decide(torch.tensor(3), planned=0), decide(torch.empty((), device="meta"), planned=True)
    (3, True)
    """
    return planned if x.is_meta else type(planned)(x)

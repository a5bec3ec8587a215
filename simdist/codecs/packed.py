"""Payloads as bytes: what an algorithm encoded by itself travels as it is, and is counted byte by byte."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from simdist.codecs.codec import Codec, Noise, Payload


class Packed(Codec):
    """Payloads as they are: the wire of algorithms that encode for themselves (not for scenarios to name)."""

    name: ClassVar[str] = "packed"
    reduction: ClassVar[Literal["sum", "two_shot", "gather"]] = "sum"
    pointwise: ClassVar[bool] = True

    def lossless(self, dtype: torch.dtype) -> bool:
        return True

    def encode(self, x: Tensor, noise: Noise) -> Payload:
        return (x,)

    def decode(self, payload: Payload, length: int, dtype: torch.dtype, noise: Noise) -> Tensor:
        return payload[0]


def to_bytes(payload: Payload) -> Tensor:
    """Lay a payload's tensors ``[..., k_i]`` out one after the other as one uint8 tensor ``[..., bytes]``."""
    return torch.cat([part.contiguous().view(torch.uint8) for part in payload], -1)


def from_bytes(data: Tensor, like: Sequence[Tensor]) -> Payload:
    """Return the payload of :func:`to_bytes`; ``like`` gives each tensor's dtype and last dimension."""
    sizes = [part.shape[-1] * part.element_size() for part in like]
    parts = data.split(sizes, -1)
    # a copy, as a view of another dtype needs an aligned start, and plain strides even where a dimension has one entry
    copies = (part.clone(memory_format=torch.contiguous_format) for part in parts)
    return tuple(part.view(sample.dtype) for part, sample in zip(copies, like, strict=True))

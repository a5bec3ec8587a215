"""Wire casts (card 15): the number format of the payload. Sums are taken in the run's dtype, never in the wire's."""

from __future__ import annotations

import torch
from torch import Tensor

from simdist.communication.codecs.codec import Cast, codecs


class Float32(Cast):
    """4 bytes a number; lossless for float32 runs."""

    name = "fp32"
    dtype = torch.float32


class Float64(Cast):
    """8 bytes a number; lossless for float64 runs (reference and tests)."""

    name = "fp64"
    dtype = torch.float64


class BFloat16(Cast):
    """2 bytes a number: 8 significant bits, the range of float32."""

    name = "bf16"
    dtype = torch.bfloat16


class Float16(Cast):
    """2 bytes a number: 11 significant bits, saturating at +-65504 instead of overflowing to infinity."""

    name = "fp16"
    dtype = torch.float16

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        limit = torch.finfo(torch.float16).max
        # clamp keeps NaN, so that a diverged run is still seen as diverged
        return (x.clamp(-limit, limit).to(self.dtype),)


for _codec in (Float32(), BFloat16(), Float16(), Float64()):
    codecs.register(_codec.name)(_codec)

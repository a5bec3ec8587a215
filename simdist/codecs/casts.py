"""Wire casts (card 15): the number format of the payload."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from simdist.codecs.codec import Cast, Noise, Payload, codecs


@codecs.register("fp32")
class Float32(Cast):
    """4 bytes a number; lossless for float32 runs."""

    name: ClassVar[str] = "fp32"
    dtype: ClassVar[torch.dtype] = torch.float32


@codecs.register("bf16")
class BFloat16(Cast):
    """2 bytes a number: 8 significant bits, the range of float32; sums in fp32 or (accumulate=wire) in bf16."""

    name: ClassVar[str] = "bf16"
    dtype: ClassVar[torch.dtype] = torch.bfloat16


@codecs.register("fp16")
class Float16(Cast):
    """2 bytes a number: 11 significant bits, saturating at +-65504 instead of overflowing to infinity."""

    name: ClassVar[str] = "fp16"
    dtype: ClassVar[torch.dtype] = torch.float16

    def encode(self, x: Tensor, noise: Noise) -> Payload:
        limit = torch.finfo(torch.float16).max
        # clamp keeps NaN, so that a diverged run is still seen as diverged
        return (x.clamp(-limit, limit).to(self.dtype),)


@codecs.register("fp64")
class Float64(Cast):
    """8 bytes a number; lossless for float64 runs (reference and tests)."""

    name: ClassVar[str] = "fp64"
    dtype: ClassVar[torch.dtype] = torch.float64

"""8-bit floating point with dynamic scales (card 15): e4m3 and e5m2, saturating."""

from __future__ import annotations

from abc import ABC
from typing import ClassVar, Literal

import torch
from torch import Tensor

from simdist.codecs.buckets import Rounding, cut, joined, quotient, rounded, scale_for
from simdist.codecs.codec import Codec, Noise, Payload, codecs
from simdist.settings import PositiveInt


class Float8(Codec, ABC):
    """Base of the 8-bit floating-point codecs: ``x / s`` in the format, ``s = max|x| / largest``, one s per block.

    Payload of a message of ``length`` numbers: ``length + 4 ceil(length / block)`` bytes; the scale (fp32) is of this
    very message (dynamic scaling; delayed scaling, from earlier maxima, would need memory). Numbers below the format's
    normal range, relative to the largest of their block, lose precision and then vanish. Blocks that hold a NaN or an
    infinity arrive as NaN.

    Attributes:
        block: numbers that share a scale; by default the message is one block.
        rounding: ``nearest`` (ties to even), or ``stochastic``: between the two neighbours, without bias.
    """

    block: PositiveInt | None = None
    rounding: Rounding = "nearest"

    random: ClassVar[Literal["no", "own", "shared"]] = "own"
    dtype: ClassVar[torch.dtype]

    def encode(self, x: Tensor, noise: Noise) -> Payload:
        rows = cut(x, self.block or x.shape[-1])
        limit = torch.finfo(self.dtype).max
        scales = scale_for(rows.abs().amax(-1), limit, "fp32")
        z = joined(quotient(rows, scales), x.shape[-1])
        if self.rounding == "stochastic":
            quantum = self._quantum(z)
            z = rounded(z / quantum, "stochastic", noise) * quantum
        # e4m3 has no infinity, and torch casts what is beyond its range to NaN
        return z.clamp(-limit, limit).to(self.dtype), scales

    def decode(self, payload: Payload, length: int, dtype: torch.dtype, noise: Noise) -> Tensor:
        stored, scales = payload
        rows = cut(stored.to(dtype), self.block or length)
        return joined(rows * scales.to(dtype).unsqueeze(-1), length)

    def _quantum(self, z: Tensor) -> Tensor:
        """Return the distance between the format's neighbours around each number; powers of two, so exact."""
        info = torch.finfo(self.dtype)
        # frexp's mantissas are in [1/2, 1)
        lowest = torch.tensor(info.tiny, dtype=z.dtype, device=z.device).frexp().exponent
        exponents = torch.maximum(z.frexp().exponent, lowest) - 1
        return info.eps * torch.exp2(exponents.to(z.dtype))


@codecs.register("fp8_e4m3")
class Float8E4M3(Float8):
    """1 byte a number: 4 significant bits, 18 octaves below a message's largest (FP8 formats, arXiv 2209.05433)."""

    name: ClassVar[str] = "fp8_e4m3"
    dtype: ClassVar[torch.dtype] = torch.float8_e4m3fn


@codecs.register("fp8_e5m2")
class Float8E5M2(Float8):
    """1 byte a number: 3 significant bits, 32 octaves below a message's largest (FP8 formats, arXiv 2209.05433)."""

    name: ClassVar[str] = "fp8_e5m2"
    dtype: ClassVar[torch.dtype] = torch.float8_e5m2

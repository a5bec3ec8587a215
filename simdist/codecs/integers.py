"""Integers with a scale per bucket (card 13): the quantisation of QSGD, with 4, 8 or 16 bits."""

from __future__ import annotations

from abc import ABC
from typing import ClassVar, Literal

import torch
from torch import Tensor

from simdist.codecs.bits import pack, unpack
from simdist.codecs.buckets import Rounding, ScaleFormat, cut, joined, quotient, rounded, scale_for
from simdist.codecs.codec import Codec, Noise, Payload, codecs
from simdist.codecs.sums import tree_sum
from simdist.settings import PositiveInt


class Integers(Codec, ABC):
    """Base of the integer codecs: ``code = round(x / s)``, ``xhat = s code``, one scale s per bucket.

    Payload of a message of ``length`` numbers: ``ceil(length bits / 8) + ceil(length / bucket) b_scale`` bytes, with
    b_scale = 4 (fp32) or 2 (bf16). Codes are from ``-top`` to ``top = 2^(bits-1) - 1``; the error of a number is below
    s (stochastic) or at most s / 2 (nearest). Buckets that hold a NaN or an infinity arrive as NaN.

    Attributes:
        bucket: numbers that share a scale; the last bucket of a message may be shorter, and no padding travels.
        rounding: ``stochastic``: up with a probability equal to the fraction, hence unbiased, with a variance of at
            most s^2/4 a number; ``nearest``: for error feedback.
        scale: ``max``: ``max|x| / top``; ``norm``: ``||x||_2 / top`` as in QSGD (arXiv 1610.02132), which is coarser.
        scale_format: number format of the scales, rounded up so that the largest number is not cut off.
    """

    bucket: PositiveInt = 1024
    rounding: Rounding = "stochastic"
    scale: Literal["max", "norm"] = "max"
    scale_format: ScaleFormat = "fp32"

    random: ClassVar[Literal["no", "own", "shared"]] = "own"
    bits: ClassVar[int]

    def encode(self, x: Tensor, noise: Noise) -> Payload:
        top = 2 ** (self.bits - 1) - 1
        rows = cut(x, self.bucket)
        peak = rows.abs().amax(-1) if self.scale == "max" else tree_sum(rows.square()).sqrt()
        scales = scale_for(peak, top, self.scale_format)
        z = joined(quotient(rows, scales), x.shape[-1])
        codes = rounded(z, self.rounding, noise).clamp(-top, top)
        return self._stored(codes), scales

    def decode(self, payload: Payload, length: int, dtype: torch.dtype, noise: Noise) -> Tensor:
        stored, scales = payload
        rows = cut(self._codes(stored, length).to(dtype), self.bucket)
        return joined(rows * scales.to(dtype).unsqueeze(-1), length)

    def _stored(self, codes: Tensor) -> Tensor:
        if self.bits < 8:
            return pack(codes.int() & (2**self.bits - 1), self.bits)
        return codes.to(torch.int8 if self.bits == 8 else torch.int16)

    def _codes(self, stored: Tensor, length: int) -> Tensor:
        if self.bits >= 8:
            return stored
        codes = unpack(stored, self.bits, length).to(torch.int8)
        # two's complement
        return torch.where(codes < 2 ** (self.bits - 1), codes, codes - 2**self.bits)


@codecs.register("int8")
class Int8(Integers):
    """1 byte a number and a scale per bucket of 1024, rounded at random without bias (QSGD style, arXiv 1610.02132)."""

    name: ClassVar[str] = "int8"
    bits: ClassVar[int] = 8


@codecs.register("int4")
class Int4(Integers):
    """Half a byte a number and a scale per bucket of 1024, rounded at random (QSGD style, arXiv 1610.02132)."""

    name: ClassVar[str] = "int4"
    bits: ClassVar[int] = 4


@codecs.register("int16")
class Int16(Integers):
    """2 bytes a number and a scale per bucket of 1024: the nearly exact limit of int8 (arXiv 1610.02132)."""

    name: ClassVar[str] = "int16"
    bits: ClassVar[int] = 16

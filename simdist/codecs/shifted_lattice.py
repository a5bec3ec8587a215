"""The weight quantiser of QSDP (card 14): rounding to a lattice that is shifted at random, bucket by bucket."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import AfterValidator
from torch import Tensor

from simdist.codecs.bits import pack, unpack
from simdist.codecs.buckets import ScaleFormat, cut, joined, quotient, scale_for
from simdist.codecs.codec import Codec, Noise, Payload, codecs
from simdist.settings import PositiveInt


def _width(bits: int) -> int:
    if not 2 <= bits <= 16:
        raise ValueError(f"got {bits}; expected 2 to 16 bits")
    return bits


@codecs.register("qsdp")
class ShiftedLattice(Codec):
    """1 byte a number and a scale per bucket, on a randomly shifted lattice: QSDP's weights (arXiv 2302.02390).

    ``xhat = s (round(x / s - u) + u)`` with u uniform in [-1/2, 1/2), one per bucket, which the receiver draws again
    from the shared seed, and ``s = max|x| / (2^(bits-1) - 1)``. Unbiased over u; the error is at most s / 2. Payload of
    a message of ``length`` numbers: ``ceil(length bits / 8) + ceil(length / bucket) b_scale`` bytes.

    For ``wire.params``: a second gather in a step meets the same u, hence gives the same weights. Zeros among other
    numbers arrive as ``s u``, so it is not for payloads whose zero padding is computed with. The abstract speaks of a
    random shift; scale, bucket and bits are unconfirmed, as is the rest of this formula (card 14).
    """

    name: ClassVar[str] = "qsdp"
    random: ClassVar[Literal["no", "own", "shared"]] = "own"

    bits: Annotated[int, AfterValidator(_width)] = 8
    bucket: PositiveInt = 1024
    scale_format: ScaleFormat = "fp32"

    def encode(self, x: Tensor, noise: Noise) -> Payload:
        top = 2 ** (self.bits - 1) - 1
        rows = cut(x, self.bucket)
        scales = scale_for(rows.abs().amax(-1), top, self.scale_format)
        codes = (quotient(rows, scales) - _shift(scales.shape, noise, x)).round().clamp(-top, top)
        return pack(joined(codes, x.shape[-1]).int() + top, self.bits), scales

    def decode(self, payload: Payload, length: int, dtype: torch.dtype, noise: Noise) -> Tensor:
        stored, scales = payload
        top = 2 ** (self.bits - 1) - 1
        rows = cut(unpack(stored, self.bits, length).to(dtype) - top, self.bucket)
        scales = scales.to(dtype)
        return joined((rows + _shift(scales.shape, noise, scales)) * scales.unsqueeze(-1), length)


def _shift(shape: Sequence[int], noise: Noise, like: Tensor) -> Tensor:
    """Draw one shift per bucket, ``[..., buckets, 1]``."""
    return (noise(shape).to(like) - 0.5).unsqueeze(-1)

"""Natural compression: nothing but signs and powers of two."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from simdist.codecs.buckets import Rounding
from simdist.codecs.codec import Codec, Noise, Payload, codecs

#: code c from 1 to TOP is the power 2^(highest - TOP + c); 0 is zero
_TOP = 127
#: an exponent that no finite number has
_DIVERGED = torch.iinfo(torch.int16).max


@codecs.register("natural")
class Natural(Codec):
    """1 byte a number: sign and power of two, rounded at random without bias (natural compression, arXiv 1905.10988).

    Payload of a message of ``length`` numbers: ``length + 2`` bytes. The paper's wire has 9 bits for a float32, its
    sign and exponent. Here a byte holds the sign and one of 127 powers, the greatest of which is the first above the
    message's largest number (its exponent travels in 2 bytes) and the least is 2^126 times smaller; numbers below that
    are rounded to it or to zero, still without bias. A message that holds a NaN or an infinity arrives as NaN.

    Attributes:
        rounding: ``stochastic``: to one of the two neighbouring powers, with a variance of at most x^2 / 8;
            ``nearest``: to the nearer one, with an error of at most |x| / 3.
    """

    name: ClassVar[str] = "natural"
    random: ClassVar[Literal["no", "own", "shared"]] = "own"

    rounding: Rounding = "stochastic"

    def encode(self, x: Tensor, noise: Noise) -> Payload:
        finite = x.isfinite().all(-1, keepdim=True)
        sizes = torch.where(finite, x.abs(), 0)
        # sizes = mantissas 2^exponents, with mantissas from 1/2 to below 1, or 0 2^0
        highest = sizes.amax(-1, keepdim=True).frexp().exponent
        mantissas, exponents = sizes.frexp()
        below = exponents - 1 - highest + _TOP
        least = torch.exp2((exponents - highest + _TOP - 1).clamp(max=0).to(x.dtype))
        low = torch.where(sizes == 0, 0, below.clamp(min=0))
        fraction = torch.where(low > 0, 2 * mantissas - 1, mantissas * least)
        draw = noise(sizes.shape).to(sizes) if self.rounding == "stochastic" else torch.full_like(sizes, 0.5)
        codes = low + (draw < fraction)
        exponent = torch.where(finite, highest, _DIVERGED).to(torch.int16)
        return torch.where(x < 0, codes + _TOP + 1, codes).to(torch.uint8), exponent

    def decode(self, payload: Payload, length: int, dtype: torch.dtype, noise: Noise) -> Tensor:
        stored, exponent = payload
        codes, highest = (stored & _TOP).int(), exponent.int()
        powers = torch.where(codes == 0, 0, torch.exp2((highest - _TOP + codes).to(dtype)))
        return torch.where(highest == _DIVERGED, torch.nan, torch.where(stored > _TOP, -powers, powers))

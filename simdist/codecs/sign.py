"""Signs with one scale (card 12): the compressor of EF-signSGD."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from simdist.codecs.bits import pack, unpack
from simdist.codecs.codec import Codec, Noise, Payload, codecs
from simdist.codecs.sums import tree_sum


@codecs.register("sign")
class Sign(Codec):
    """1 bit a number and one scale: ``(||x||_1 / d) sign(x)``; use with error feedback (EF-signSGD, arXiv 1901.09847).

    Payload of a message of ``length`` numbers: ``ceil(length / 8) + 4`` bytes. ``sign(0)`` is +1, as one bit has no
    third value; a message of zeros has the scale 0. ``||C(x) - x||^2 = ||x||^2 - ||x||_1^2 / d``. On the wire each
    slice of a two-shot sum has a scale of its own (zeros that pad the last slice count in its d).
    """

    name: ClassVar[str] = "sign"

    def encode(self, x: Tensor, noise: Noise) -> Payload:
        scale = (tree_sum(x.abs()) / x.shape[-1]).float().unsqueeze(-1)
        return pack(x < 0, 1), scale

    def decode(self, payload: Payload, length: int, dtype: torch.dtype, noise: Noise) -> Tensor:
        negative, scale = payload
        scale = scale.to(dtype)
        return torch.where(unpack(negative, 1, length) > 0, -scale, scale)

"""Buckets: pieces of a message that have a scale each; and how scales and codes are rounded."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from simdist.codecs.codec import Noise

ScaleFormat = Literal["fp32", "bf16"]
Rounding = Literal["stochastic", "nearest"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def cut(x: Tensor, bucket: int) -> Tensor:
    """Cut messages ``[..., length]`` into ``[..., buckets, bucket]``; the last bucket is filled up with zeros.

    Messages shorter than a bucket are one bucket of their own length.
    """
    length = x.shape[-1]
    size = min(bucket, length)
    rows: Tensor = pad(x, (0, -length % size)).unflatten(-1, (-1, size))
    return rows


def joined(rows: Tensor, length: int) -> Tensor:
    """Undo :func:`cut`: return messages ``[..., length]``."""
    return rows.flatten(-2)[..., :length]


def scale_for(peak: Tensor, top: float, scale_format: ScaleFormat) -> Tensor:
    """Return the least scale s of a format with ``s top >= peak``, so that codes up to ``top`` reach the peak.

    Rounded to nearest, a scale could end below: the peak would then be cut off. Zero for zeros; infinite or NaN for a
    peak that is, or that the format cannot hold, so that a diverged run is seen.
    """
    dtype = _DTYPES[scale_format]
    scale = (peak.double() / top).to(dtype)
    return torch.where(scale.double() * top < peak.double(), scale.nextafter(torch.full_like(scale, torch.inf)), scale)


def quotient(rows: Tensor, scale: Tensor) -> Tensor:
    """Return ``rows / scale`` per bucket, ``[..., buckets, bucket]``; zeros where that is no number."""
    divisor = scale.to(rows.dtype).unsqueeze(-1)
    return (rows / torch.where(divisor == 0, 1, divisor)).nan_to_num(0.0)


def rounded(z: Tensor, rounding: Rounding, noise: Noise) -> Tensor:
    """Round to integers: to the nearest (ties to even), or up with a probability equal to the fraction.

    The fraction is compared with the noise, not added to it, so that integers stay what they are.
    """
    if rounding == "nearest":
        return z.round()
    low = z.floor()
    return low + (noise(z.shape).to(z) < z - low)

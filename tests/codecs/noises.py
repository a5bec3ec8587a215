"""Noise for tests: a seeded stream, and the part of it that one message of many meets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from simdist.codecs import Noise


def seeded(seed: int = 0) -> Callable[[], Noise]:
    """Return what begins the stream of a seed."""

    def begin() -> Noise:
        generator = torch.Generator().manual_seed(seed)
        return lambda shape: torch.rand(tuple(shape), generator=generator)

    return begin


def of_message(begin: Callable[[], Noise], lead: Sequence[int], place: Sequence[int]) -> Callable[[], Noise]:
    """Return what begins the noise that the message at ``place`` meets among messages ``lead``."""

    def begin_there() -> Noise:
        noise = begin()
        return lambda shape: noise((*lead, *shape))[tuple(place)]

    return begin_there


def spread(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers of sizes from 1e-2 to 1e2, of both signs."""
    generator = torch.Generator().manual_seed(seed)
    sizes = 10.0 ** (4 * torch.rand(shape, generator=generator, dtype=torch.float64) - 2)
    signs = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    return (signs * sizes).to(dtype)

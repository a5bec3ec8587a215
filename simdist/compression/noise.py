"""Random numbers of encoders, drawn again by the decoders: keyed by step, tensor and place on the axis."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from simdist.codecs import Codec, Noise, silent
from simdist.compression.compression import Link
from simdist.program.random import stream


def sender_noise(codec: Codec, link: Link, what: str = "") -> Noise:
    """Return the noise that encodes this worker's messages."""
    if codec.random == "no":
        return silent
    if codec.random == "shared":
        return _shared(link, what)
    index = link.axis.index
    if index is not None:
        generator = _stream(link, what, index)
        return lambda shape: torch.rand(tuple(shape), generator=generator)
    generators = [_stream(link, what, place) for place in range(link.axis.size)]

    def draw(shape: Sequence[int]) -> Tensor:
        # a cohort's messages have two leading worker axes; each member takes the draws of its place
        drawn = torch.stack([torch.rand(tuple(shape[2:]), generator=generator) for generator in generators])
        dim = -len(shape[2:]) - 1
        mine: Tensor = link.axis.share(link.worker.ops.alike(drawn), dim).squeeze(dim)
        return mine

    return draw


def receiver_noise(codec: Codec, link: Link, slices: int = 0, what: str = "") -> Noise:
    """Return the noise that decodes the members' messages ``[..., members, length]``.

    Args:
        slices: the senders encoded this many slices together, and this member received its own; 0: whole messages.
    """
    if codec.random == "no":
        return silent
    if codec.random == "shared":
        return _shared(link, what)
    generators = [_stream(link, what, place) for place in range(link.axis.size)]

    def draw(shape: Sequence[int]) -> Tensor:
        each = (slices, shape[-1]) if slices else (shape[-1],)
        drawn = link.worker.ops.alike(torch.stack([torch.rand(each, generator=g) for g in generators]))
        return link.axis.share(drawn, -2).squeeze(-2) if slices else drawn

    return draw


def _stream(link: Link, what: str, place: int | None) -> torch.Generator:
    return stream(link.worker.seed, f"compression/{link.axis.name}/{link.name}{what}", place, link.step)


def _shared(link: Link, what: str) -> Noise:
    """The same numbers for all members, and for all slices."""
    generator = _stream(link, what, None)

    def draw(shape: Sequence[int]) -> Tensor:
        return torch.rand(shape[-1], generator=generator).expand(tuple(shape))

    return draw

"""Random numbers of encoders, drawn again by the decoders: keyed by step, tensor and place on the axis."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from simdist.codecs import Codec, Noise, silent
from simdist.exchange.channel import Channel
from simdist.program.random import stream


def sender_noise(codec: Codec, channel: Channel, what: str = "") -> Noise:
    """Return the noise that encodes this worker's messages."""
    if codec.random == "no":
        return silent
    if codec.random == "shared":
        return _shared(channel, what)
    index = channel.axis.index
    if index is not None:
        generator = _stream(channel, what, index)
        return lambda shape: torch.rand(tuple(shape), generator=generator)
    generators = [_stream(channel, what, place) for place in range(channel.axis.size)]

    def draw(shape: Sequence[int]) -> Tensor:
        # a cohort's messages have two leading worker axes; each member takes the draws of its place
        drawn = torch.stack([torch.rand(tuple(shape[2:]), generator=generator) for generator in generators])
        dim = -len(shape[2:]) - 1
        mine: Tensor = channel.axis.share(channel.worker.ops.alike(drawn), dim).squeeze(dim)
        return mine

    return draw


def receiver_noise(codec: Codec, channel: Channel, slices: int = 0, what: str = "") -> Noise:
    """Return the noise that decodes the members' messages ``[..., members, length]``.

    Args:
        codec: of the messages.
        channel: of the senders.
        slices: the senders encoded this many slices together, and this member received its own; 0: whole messages.
        what: as the senders had it.
    """
    if codec.random == "no":
        return silent
    if codec.random == "shared":
        return _shared(channel, what)
    generators = [_stream(channel, what, place) for place in range(channel.axis.size)]

    def draw(shape: Sequence[int]) -> Tensor:
        each = (slices, shape[-1]) if slices else (shape[-1],)
        drawn = channel.worker.ops.alike(torch.stack([torch.rand(each, generator=g) for g in generators]))
        return channel.axis.share(drawn, -2).squeeze(-2) if slices else drawn

    return draw


def common_noise(codec: Codec, channel: Channel, what: str = "") -> Noise:
    """Return the noise of a message ``[..., length]`` that all members encode alike, to get the same bits."""
    if codec.random == "no":
        return silent
    if codec.random == "shared":
        return _shared(channel, what)
    generator, lead = _stream(channel, what, None), 0 if channel.axis.index is not None else 2
    return lambda shape: torch.rand(tuple(shape[lead:]), generator=generator).expand(tuple(shape))


def _stream(channel: Channel, what: str, place: int | None) -> torch.Generator:
    return stream(channel.worker.seed, f"{channel.key}{what}", place, channel.step)


def _shared(channel: Channel, what: str) -> Noise:
    """The same numbers for all members, and for all slices."""
    generator = _stream(channel, what, None)

    def draw(shape: Sequence[int]) -> Tensor:
        return torch.rand(shape[-1], generator=generator).expand(tuple(shape))

    return draw

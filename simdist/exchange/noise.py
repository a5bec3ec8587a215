"""Random numbers of encoders, drawn again by the decoders: keyed by step, tensor and worker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from simdist.codecs import Codec, Noise, silent
from simdist.exchange.channel import Channel
from simdist.program import MeshShape
from simdist.program.random import stream

#: leading dimensions of a cohort: replicas, shards
_LEAD = 2


def sender_noise(codec: Codec, channel: Channel, what: str = "") -> Noise:
    """Return the noise that encodes this worker's messages: every worker draws its own, or all the same.

    Args:
        what: tells several messages about one tensor in one step apart.
    """
    if codec.random == "no":
        return silent
    if codec.random == "shared":
        return _shared(channel, what)
    streams, lead = _streams(channel, what), 0 if channel.worker.index is not None else _LEAD

    def draw(shape: Sequence[int]) -> Tensor:
        return channel.worker.ops.each(lambda worker: torch.rand(tuple(shape[lead:]), generator=streams(worker)))

    return draw


def receiver_noise(codec: Codec, channel: Channel, slices: int = 0, what: str = "") -> Noise:
    """Return the noise that decodes the members' messages ``[..., members, length]``.

    Args:
        slices: the senders encoded this many slices together, and this member received its own; 0: whole messages.
    """
    if codec.random == "no":
        return silent
    if codec.random == "shared":
        return _shared(channel, what)
    streams, me = _streams(channel, what), channel.worker.index
    mesh = MeshShape(channel.worker.mesh.replicas.size, channel.worker.mesh.shards.size)

    def drawn(worker: int, shape: Sequence[int]) -> Tensor:
        each = (slices, shape[-1]) if slices else (shape[-1],)
        return torch.rand(each, generator=streams(worker))

    def of_group(shape: Sequence[int]) -> Tensor:
        assert me is not None
        members = [drawn(worker, shape) for worker in mesh.group(channel.axis.name, me)]
        return torch.stack([x[mesh.place(channel.axis.name, me)] if slices else x for x in members])

    def of_cohort(shape: Sequence[int]) -> Tensor:
        grid = channel.worker.ops.each(lambda worker: drawn(worker, shape))
        dim = {"replicas": 0, "shards": 1}[channel.axis.name]
        # sender and slice change places; whole messages are the same for all receivers
        return grid.transpose(dim, _LEAD) if slices else grid.movedim(dim, -2).unsqueeze(dim)

    return of_cohort if me is None else of_group


def common_noise(codec: Codec, channel: Channel, what: str = "") -> Noise:
    """Return the noise of a message ``[..., length]`` that all members encode alike, to get the same bits."""
    if codec.random == "no":
        return silent
    if codec.random == "shared":
        return _shared(channel, what)
    generator = stream(channel.worker.seed, _purpose(channel, what), None, channel.step)
    lead = 0 if channel.worker.index is not None else _LEAD
    return lambda shape: torch.rand(tuple(shape[lead:]), generator=generator).expand(tuple(shape))


def _purpose(channel: Channel, what: str) -> str:
    return f"{channel.key}{what}"


def _streams(channel: Channel, what: str) -> Callable[[int], torch.Generator]:
    """Return every worker's stream, each begun once."""
    seed, purpose = channel.worker.seed, _purpose(channel, what)
    return lru_cache(maxsize=None)(lambda worker: stream(seed, purpose, worker, channel.step))


def _shared(channel: Channel, what: str) -> Noise:
    """The same numbers for all workers, and for all slices."""
    generator = stream(channel.worker.seed, _purpose(channel, what), None, channel.step)

    def draw(shape: Sequence[int]) -> Tensor:
        return torch.rand(shape[-1], generator=generator).expand(tuple(shape))

    return draw

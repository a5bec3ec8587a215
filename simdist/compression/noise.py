"""Random numbers of encoders, drawn again by the decoders: keyed by step, tensor and worker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from simdist.codecs import Codec, Noise, silent
from simdist.compression.compression import Link
from simdist.program import MeshShape
from simdist.program.random import stream

#: leading dimensions of a cohort: replicas, shards
_LEAD = 2


def sender_noise(codec: Codec, link: Link, what: str = "") -> Noise:
    """Return the noise that encodes this worker's messages: every worker draws its own, or all the same.

    Args:
        what: tells several messages about one tensor in one step apart.
    """
    if codec.random == "no":
        return silent
    if codec.random == "shared":
        return _shared(link, what)
    streams, lead = _streams(link, what), 0 if link.worker.index is not None else _LEAD

    def draw(shape: Sequence[int]) -> Tensor:
        return link.worker.ops.each(lambda worker: torch.rand(tuple(shape[lead:]), generator=streams(worker)))

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
    streams, me = _streams(link, what), link.worker.index
    mesh = MeshShape(link.worker.mesh.replicas.size, link.worker.mesh.shards.size)

    def drawn(worker: int, shape: Sequence[int]) -> Tensor:
        each = (slices, shape[-1]) if slices else (shape[-1],)
        return torch.rand(each, generator=streams(worker))

    def of_group(shape: Sequence[int]) -> Tensor:
        assert me is not None
        members = [drawn(worker, shape) for worker in mesh.group(link.axis.name, me)]
        return torch.stack([x[mesh.place(link.axis.name, me)] if slices else x for x in members])

    def of_cohort(shape: Sequence[int]) -> Tensor:
        grid = link.worker.ops.each(lambda worker: drawn(worker, shape))
        dim = {"replicas": 0, "shards": 1}[link.axis.name]
        # sender and slice change places; whole messages are the same for all receivers
        return grid.transpose(dim, _LEAD) if slices else grid.movedim(dim, -2).unsqueeze(dim)

    return of_cohort if me is None else of_group


def _purpose(link: Link, what: str) -> str:
    return f"compression/{link.axis.name}/{link.name}{what}"


def _streams(link: Link, what: str) -> Callable[[int], torch.Generator]:
    """Return every worker's stream, each begun once."""
    return lru_cache(maxsize=None)(lambda worker: stream(link.worker.seed, _purpose(link, what), worker, link.step))


def _shared(link: Link, what: str) -> Noise:
    """The same numbers for all workers, and for all slices."""
    generator = stream(link.worker.seed, _purpose(link, what), None, link.step)

    def draw(shape: Sequence[int]) -> Tensor:
        return torch.rand(shape[-1], generator=generator).expand(tuple(shape))

    return draw

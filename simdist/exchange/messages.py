"""How encoded messages of all members come together: gathered, or dealt out in slices and brought back.

Bytes sent per worker, n members, s bytes of one encoded message, ring(n) = (n - 1) / n:

- :func:`gathered`: every payload to everybody, ``(n - 1) s``;
- :func:`dealt`: slice i of every member to member i, ``ring(n) s`` for s bytes of all slices;
- :func:`means_back`: dealt, then the owners' means to everybody as they are, ``ring(n) (s + d b)`` for d numbers;
- :func:`sums_back`: dealt, then the owners' means to everybody, encoded with an error memory, ``2 ring(n) s``.

All return what became of this worker's own message as well: what error feedback compares with.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from simdist.codecs import Codec, from_bytes, to_bytes
from simdist.exchange.channel import Channel
from simdist.exchange.noise import receiver_noise, sender_noise
from simdist.program import Axis


async def gathered(codec: Codec, x: Tensor, channel: Channel, what: str = "") -> tuple[Tensor, Tensor]:
    """Return all members' decoded messages ``[..., members, length]`` and this worker's own ``[..., length]``."""
    length = x.shape[-1]
    payload = codec.encode(x, sender_noise(codec, channel, what))
    own = codec.decode(payload, length, x.dtype, sender_noise(codec, channel, what))
    data = await encoded_axis(codec, channel).all_gather(to_bytes(payload).unsqueeze(-2), -2, wire="packed")
    whole = codec.decode(from_bytes(data, payload), length, x.dtype, receiver_noise(codec, channel, what=what))
    return whole, own


async def dealt(codec: Codec, x: Tensor, channel: Channel) -> tuple[Tensor, Tensor]:
    """Return the members' decoded slices for this member ``[..., members, length]``, and this worker's own slices.

    Args:
        codec: how a slice is encoded.
        x: this worker's slices ``[..., members, length]``.
        channel: where they travel.
    """
    length = x.shape[-1]
    payload = codec.encode(x, sender_noise(codec, channel))
    own = codec.decode(payload, length, x.dtype, sender_noise(codec, channel))
    data = await encoded_axis(codec, channel).all_to_all(to_bytes(payload), split_dim=-2, concat_dim=-2, wire="packed")
    noise = receiver_noise(codec, channel, slices=x.shape[-2])
    return codec.decode(from_bytes(data, payload), length, x.dtype, noise), own


async def means_back(codec: Codec, x: Tensor, channel: Channel) -> tuple[Tensor, Tensor]:
    """Return the mean of all members' decoded messages and this worker's own, ``[..., length]`` both.

    The means of slices return as they are, under the codec ``wire.grads``: a second rounding would part an estimate
    that follows them from the mean of the members' own estimates, for good.
    """
    length = x.shape[-1]
    messages, own = await dealt(codec, cut(x, channel.axis.size), channel)
    whole = await channel.axis.all_gather(average(messages).unsqueeze(-2), -2, wire="grads")
    return uncut(whole, length), uncut(own, length)


async def sums_back(
    codec: Codec, x: Tensor, error: Tensor, channel: Channel, live: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean as it arrives, this worker's own message ``[..., length]`` both, and the owner's new error.

    Args:
        codec: of both ways.
        x: this worker's message ``[..., length]``.
        error: what the codec left out of earlier means of this owner's slice, ``[..., ceil(length / members)]``.
        channel: where they travel.
        live: booleans ``[..., length]``, the same on all members: where not, decoded numbers are dropped by the owners,
            and so are those of the padding that makes slices equal, as only zeros were sent there.
    """
    members, length = channel.axis.size, x.shape[-1]
    messages, own = await dealt(codec, cut(x, members), channel)
    mean = average(messages)
    if live is not None:
        mean = torch.where(channel.axis.share(cut(live, members), -2).squeeze(-2), mean, 0)
    mean = mean + error
    whole, back = await gathered(codec, mean, channel, "/sum")
    return uncut(whole, length), uncut(own, length), mean - back


def cut(x: Tensor, members: int) -> Tensor:
    """Cut messages ``[..., length]`` into slices ``[..., members, ceil(length / members)]``, zeros at the end."""
    slices: Tensor = pad(x, (0, -x.shape[-1] % members)).unflatten(-1, (members, -1))
    return slices


def uncut(slices: Tensor, length: int) -> Tensor:
    """Undo :func:`cut`."""
    return slices.flatten(-2).narrow(-1, 0, length)


def total(messages: Tensor) -> Tensor:
    """Return the sum over members of ``[..., members, length]``, added one by one in member order.

    Not by a kernel's own summation, whose order may depend on the shape in front.
    """
    found = messages.select(-2, 0)
    for member in range(1, messages.shape[-2]):
        found = found + messages.select(-2, member)
    return found


def average(messages: Tensor) -> Tensor:
    """Return the mean over members of ``[..., members, length]``."""
    return total(messages) / messages.shape[-2]


def encoded_axis(codec: Codec, channel: Channel) -> Axis:
    """Return the channel's axis, with the codec's name for the ledger."""
    return channel.axis.labelled(replace(channel.axis.label, encoding=codec.label))

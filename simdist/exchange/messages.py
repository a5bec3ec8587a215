"""How encoded gradients of all members come together: gathered, dealt out in slices, or summed as they are.

Bytes sent per worker, n members, s bytes of one encoded message, ring(n) = (n - 1) / n:

- :func:`gathered`: every payload to everybody, ``(n - 1) s``;
- :func:`dealt`: slice i of every member to member i, ``ring(n) s`` for s bytes of all slices;
- :func:`summed`: payloads of linear codecs, an all-reduce ``2 ring(n) s`` or a reduce-scatter ``ring(n) s``;
- :func:`returned`: slices back to everybody as plain numbers, ``ring(n)`` of the whole;
- :func:`exact_mean`: what a codec's way of summing takes of these, without rounding sums;
- :func:`two_shot`: dealt, and the owners' means gathered in the same codec, ``2 ring(n) s``.

All but :func:`returned` say what became of this worker's own message as well: what error feedback compares with.
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


async def gathered(codec: Codec, x: Tensor, channel: Channel, part: str = "") -> tuple[Tensor, Tensor]:
    """Return all members' decoded messages ``[..., members, length]`` and this worker's own ``[..., length]``.

    Args:
        part: of the exchange, for the ledger, and to tell its noise from that of the others.
    """
    length = x.shape[-1]
    payload = codec.encode(x, sender_noise(codec, channel, part))
    own = codec.decode(payload, length, x.dtype, sender_noise(codec, channel, part))
    axis = encoded(channel.axis, codec.label)
    data = await axis.all_gather(to_bytes(payload).unsqueeze(-2), -2, part=part, wire="packed")
    whole = codec.decode(from_bytes(data, payload), length, x.dtype, receiver_noise(codec, channel, what=part))
    return whole, own


async def dealt(codec: Codec, x: Tensor, channel: Channel) -> tuple[Tensor, Tensor]:
    """Return the members' decoded slices for this member ``[..., members, length]``, and this worker's own slices.

    Args:
        x: this worker's slices ``[..., members, length]``, each a message.
    """
    length = x.shape[-1]
    payload = codec.encode(x, sender_noise(codec, channel))
    own = codec.decode(payload, length, x.dtype, sender_noise(codec, channel))
    axis = encoded(channel.axis, codec.label)
    data = await axis.all_to_all(to_bytes(payload), split_dim=-2, concat_dim=-2, wire="packed")
    noise = receiver_noise(codec, channel, slices=x.shape[-2])
    return codec.decode(from_bytes(data, payload), length, x.dtype, noise), own


async def summed(codec: Codec, x: Tensor, channel: Channel, exact: bool = False) -> tuple[Tensor, Tensor]:
    """Return the mean message of a linear codec ``[..., length]`` and this worker's own (scattered: its slices).

    Numbers are added in the codec's ``sum_dtype``. Where that is the format that travels, as they go; else slices go to
    owners, who add, and come back: the same bytes.

    Args:
        exact: means come back in the run's number format (with more bytes if the codec's is coarser).
    """
    length = x.shape[-1]
    payload = codec.encode(x, sender_noise(codec, channel))
    own = codec.decode(payload, length, x.dtype, sender_noise(codec, channel))
    axis = encoded(channel.axis, codec.label)
    wide = x.dtype if exact else codec.sum_dtype(x.dtype)
    parts = []
    for numbers in payload:
        as_it_goes, count = numbers.dtype == wide, numbers.shape[-1]
        if channel.scatter:
            if as_it_goes:
                parts.append((await axis.reduce_scatter(numbers, -2, mean=True, wire="packed")).squeeze(-2))
            else:
                parts.append(await _mean_slice(numbers, wide, axis))
        elif as_it_goes:
            parts.append(await axis.mean(numbers, wire="packed"))
        else:
            mean = await _mean_slice(cut(numbers, axis.size), wide, axis)
            if exact:
                parts.append(await returned(mean, count, channel))
            else:
                # a mean is within the range of what it is the mean of: no saturation
                back = await axis.all_gather(mean.to(numbers.dtype).unsqueeze(-2), -2, part="sum", wire="packed")
                parts.append(uncut(back, count))
    return codec.decode(tuple(parts), length, x.dtype, receiver_noise(codec, channel)), own


async def _mean_slice(slices: Tensor, dtype: torch.dtype, axis: Axis) -> Tensor:
    arrived = await axis.all_to_all(slices, split_dim=-2, concat_dim=-2, wire="packed")
    return average(arrived.to(dtype))


async def returned(slice_mean: Tensor, length: int, channel: Channel) -> Tensor:
    """Return the whole ``[..., length]`` of every owner's slice ``[..., slice]``, in the run's number format."""
    axis = as_it_is(channel.axis, slice_mean.dtype)
    return uncut(await axis.all_gather(slice_mean.unsqueeze(-2), -2, part="sum", wire="packed"), length)


async def exact_mean(codec: Codec, x: Tensor, channel: Channel) -> tuple[Tensor, Tensor]:
    """Return the mean of what becomes of all members' messages, and this worker's own: the codec's own way of summing.

    Sums that come back from owners do so in the run's number format: a second rounding would part an estimate that
    follows these means from the mean of the members' own estimates, for good.
    """
    if codec.reduction == "sum":
        return await summed(codec, x, channel, exact=True)
    if channel.scatter:
        messages, own = await dealt(codec, x, channel)
        return average(messages), own
    if codec.reduction == "gather":
        messages, own = await gathered(codec, x, channel)
        return average(messages), own
    length = x.shape[-1]
    messages, sent = await dealt(codec, cut(x, channel.axis.size), channel)
    slice_mean = clean_slice(average(messages), length, channel)
    return await returned(slice_mean, length, channel), uncut(sent, length)


async def two_shot(codec: Codec, x: Tensor, error: Tensor, channel: Channel) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean as it arrives, this worker's own message, both ``[..., length]``, and the owner's new error.

    Both ways are encoded slice by slice, and what the way back leaves out is kept by the slices' owners, as 1-bit Adam
    does (arXiv 2102.02888).

    Args:
        error: what was left out of earlier means of this owner's slice, ``[..., ceil(length / members)]``.
    """
    length = x.shape[-1]
    messages, own = await dealt(codec, cut(x, channel.axis.size), channel)
    mean = clean_slice(average(messages), length, channel) + error
    whole, back = await gathered(codec, mean, channel, "sum")
    return uncut(whole, length), uncut(own, length), clean_slice(mean - back, length, channel)


def cut(x: Tensor, members: int) -> Tensor:
    """Cut messages ``[..., length]`` into slices ``[..., members, ceil(length / members)]``, zeros at the end."""
    slices: Tensor = pad(x, (0, -x.shape[-1] % members)).unflatten(-1, (members, -1))
    return slices


def uncut(slices: Tensor, length: int) -> Tensor:
    """Undo :func:`cut`."""
    return slices.flatten(-2).narrow(-1, 0, length)


def clean_slice(x: Tensor, length: int, channel: Channel) -> Tensor:
    """Return this owner's slice ``[..., slice]`` of a cut message, with zeros where nothing real was cut."""
    if channel.real is None and length % channel.axis.size == 0:
        return x
    real = channel.worker.ops.alike(x.new_ones(length, dtype=torch.bool)) if channel.real is None else channel.real
    mine = channel.axis.share(cut(real, channel.axis.size), -2).squeeze(-2)
    return torch.where(mine, x, 0)


def total(messages: Tensor) -> Tensor:
    """Return the sum over members of ``[..., members, length]``, added one by one in member order.

    Not by a kernel's own summation, whose order may depend on the shape in front.
    """
    if messages.is_meta:  # shapes have no order of additions, and members may be thousands
        return messages.sum(-2, dtype=messages.dtype)
    found = messages.select(-2, 0)
    for member in range(1, messages.shape[-2]):
        found = found + messages.select(-2, member)
    return found


def average(messages: Tensor) -> Tensor:
    """Return the mean over members of ``[..., members, length]``."""
    return total(messages) / messages.shape[-2]


def encoded(axis: Axis, encoding: str) -> Axis:
    """Return the axis with what the ledger says of its payloads' encoding."""
    return axis.labelled(replace(axis.label, encoding=encoding))


def as_it_is(axis: Axis, dtype: torch.dtype) -> Axis:
    """Return the axis for payloads of kind ``packed`` that are tensors in the run's number format, not encoded."""
    return encoded(axis, {torch.float32: "fp32", torch.float64: "fp64"}[dtype])

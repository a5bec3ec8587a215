"""How encoded gradients of all members come together: gathered, dealt out in slices, or summed as they are.

Bytes sent per worker, n members, s bytes of one encoded message, ring(n) = (n - 1) / n:

- :func:`gathered`: every payload to everybody, ``(n - 1) s``;
- :func:`dealt`: slice i of every member to member i, ``ring(n) s`` for s bytes of all slices;
- :func:`summed`: payloads of linear codecs, an all-reduce ``2 ring(n) s`` or a reduce-scatter ``ring(n) s``.

All return what became of this worker's own message as well: what error feedback compares with.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor
from torch.nn.functional import pad

from simdist.codecs import Codec, from_bytes, to_bytes
from simdist.compression.compression import Link
from simdist.compression.noise import receiver_noise, sender_noise
from simdist.program import Axis


async def gathered(codec: Codec, x: Tensor, link: Link, what: str = "") -> tuple[Tensor, Tensor]:
    """Return all members' decoded messages ``[..., members, length]`` and this worker's own ``[..., length]``."""
    length = x.shape[-1]
    payload = codec.encode(x, sender_noise(codec, link, what))
    own = codec.decode(payload, length, x.dtype, sender_noise(codec, link, what))
    data = await _axis(codec, link).all_gather(to_bytes(payload).unsqueeze(-2), -2, wire="packed")
    whole = codec.decode(from_bytes(data, payload), length, x.dtype, receiver_noise(codec, link, what=what))
    return whole, own


async def dealt(codec: Codec, x: Tensor, link: Link) -> tuple[Tensor, Tensor]:
    """Return the members' decoded slices for this member ``[..., members, length]``, and this worker's own slices.

    Args:
        x: this worker's slices ``[..., members, length]``.
    """
    length = x.shape[-1]
    payload = codec.encode(x, sender_noise(codec, link))
    own = codec.decode(payload, length, x.dtype, sender_noise(codec, link))
    data = await _axis(codec, link).all_to_all(to_bytes(payload), split_dim=-2, concat_dim=-2, wire="packed")
    noise = receiver_noise(codec, link, slices=x.shape[-2])
    return codec.decode(from_bytes(data, payload), length, x.dtype, noise), own


async def summed(codec: Codec, x: Tensor, link: Link) -> tuple[Tensor, Tensor]:
    """Return the mean message of a linear codec ``[..., length]`` and this worker's own (scattered: its slices)."""
    length = x.shape[-1]
    payload = codec.encode(x, sender_noise(codec, link))
    own = codec.decode(payload, length, x.dtype, sender_noise(codec, link))
    axis, parts = _axis(codec, link), []
    for part in payload:
        if link.scatter:
            parts.append((await axis.reduce_scatter(part, -2, mean=True, wire="packed")).squeeze(-2))
        else:
            parts.append(await axis.mean(part, wire="packed"))
    return codec.decode(tuple(parts), length, x.dtype, receiver_noise(codec, link)), own


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


def _axis(codec: Codec, link: Link) -> Axis:
    return link.axis.labelled(replace(link.axis.label, encoding=codec.label))

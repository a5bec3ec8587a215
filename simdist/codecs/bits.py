"""Bit packing: non-negative integers below 2^bits, one after the other without gaps, least significant bit first."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad


def packed_bytes(count: int, bits: int) -> int:
    """Return how many bytes ``count`` numbers of ``bits`` bits take: the last byte is filled up with zeros.

    >>> packed_bytes(3, 12)
    5
    """
    return -(-count * bits // 8)


def pack(numbers: Tensor, bits: int) -> Tensor:
    """Pack integers ``[..., count]`` from 0 to 2^bits - 1 into bytes ``[..., ceil(count bits / 8)]``.

    >>> pack(torch.tensor([1, 2, 3]), 4).tolist()
    [33, 3]
    """
    if bits == 8:
        return numbers.to(torch.uint8)
    if bits in (1, 2, 4):
        per = 8 // bits
        groups = pad(numbers.to(torch.uint8), (0, -numbers.shape[-1] % per))
        groups = groups.unflatten(-1, (groups.shape[-1] // per, per))
        packed: Tensor = groups[..., 0].clone()
        for place in range(1, per):
            packed |= groups[..., place] << (place * bits)
        return packed
    places = torch.arange(bits, device=numbers.device)
    return pack((numbers.unsqueeze(-1) >> places).bitwise_and(1).flatten(-2), 1)


def unpack(data: Tensor, bits: int, count: int) -> Tensor:
    """Return the ``count`` integers ``[..., count]`` that :func:`pack` packed: uint8 for 1, 2, 4 or 8 bits, else int64.

    >>> unpack(pack(torch.tensor([5, 0, 7, 2]), 3), 3, 4).tolist()
    [5, 0, 7, 2]
    """
    if bits in (1, 2, 4, 8):
        shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=data.device)
        numbers: Tensor = (data.unsqueeze(-1) >> shifts).bitwise_and(2**bits - 1).flatten(-2)
        return numbers[..., :count]
    ones = unpack(data, 1, count * bits).long().unflatten(-1, (count, bits))
    summed: Tensor = (ones << torch.arange(bits, device=data.device)).sum(-1)
    return summed

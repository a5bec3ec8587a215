"""Bit packing: what is packed comes back, in as few bytes as there can be."""

from __future__ import annotations

import pytest
import torch

from simdist.codecs.bits import pack, packed_bytes, unpack


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 7, 8, 11, 12, 16, 20])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9, 50])
def test_what_is_packed_comes_back(bits: int, count: int) -> None:
    numbers = torch.randint(0, 2**bits, (2, 3, count), generator=torch.Generator().manual_seed(count))
    numbers[0, 0, 0], numbers[1, 2, -1] = 0, 2**bits - 1
    packed = pack(numbers, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (2, 3, packed_bytes(count, bits))
    assert packed.shape[-1] == -(-count * bits // 8)
    assert unpack(packed, bits, count).tolist() == numbers.tolist()
    assert torch.equal(packed[1, 2], pack(numbers[1, 2], bits))


def test_numbers_stand_one_after_the_other_from_the_lowest_bit() -> None:
    assert pack(torch.tensor([1, 0, 0, 0, 0, 0, 0, 1, 1]), 1).tolist() == [129, 1]
    assert pack(torch.tensor([0xABC, 0x123]), 12).tolist() == [0xBC, 0x3A, 0x12]


def test_numbers_of_no_bits_take_no_bytes() -> None:
    """The positions of a chunk of one number."""
    packed = pack(torch.zeros(2, 5, dtype=torch.long), 0)
    assert packed.shape == (2, 0)
    assert unpack(packed, 0, 5).tolist() == [[0] * 5] * 2

"""Codecs that keep a part: which numbers, in which order, and the quantiser of SparseLoCo against the card."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from simdist.codecs import codec_named, payload_bytes
from simdist.codecs.selection import Chunks, largest
from tests.codecs.noises import seeded, spread


def plain_top(x: Tensor, k: int) -> Tensor:
    """Top-k by sorting (size, position) pairs."""
    order = sorted(range(len(x)), key=lambda i: (-abs(float(x[i])), i))[:k]
    kept = torch.zeros_like(x)
    kept[order] = x[order]
    return kept


def test_the_largest_are_kept() -> None:
    x = spread(40)
    assert torch.equal(codec_named("topk(k=7)").round_trip(x), plain_top(x, 7))
    assert torch.equal(codec_named("topk(fraction=0.3)").round_trip(x), plain_top(x, 12))


def test_of_equals_the_first_are_kept() -> None:
    x = torch.tensor([1.0, -2.0, 2.0, 1.0, -1.0, 2.0, 1.0])
    assert codec_named("topk(k=2)").round_trip(x).tolist() == [0, -2, 2, 0, 0, 0, 0]
    assert codec_named("topk(k=5)").round_trip(x).tolist() == [1, -2, 2, 1, 0, 2, 0]
    ties = torch.randint(-2, 3, (6, 300), generator=torch.Generator().manual_seed(0)).float()
    found = codec_named("topk(k=100)").round_trip(ties)
    assert all(torch.equal(mine, plain_top(row, 100)) for mine, row in zip(found, ties, strict=True))


def test_positions_ascend_and_numbers_that_are_none_come_first() -> None:
    x = torch.tensor([5.0, math.nan, -math.inf, 7.0, math.inf])
    assert largest(x, 3).tolist() == [1, 2, 4]
    assert largest(x, 4).tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("index", ["int32", "int64", "packed"])
@pytest.mark.parametrize("length", [1, 19, 20, 25, 40, 47])
def test_chunks_are_chosen_from_by_themselves(length: int, index: str) -> None:
    x = spread(2, length)
    found = codec_named(f"topk(k=3, chunk=20, index={index})").round_trip(x)
    for row, mine in zip(x, found, strict=True):
        # a short chunk keeps the same share, rounded up
        expected = torch.cat([plain_top(part, math.ceil(3 * len(part) / 20)) for part in row.split(20)])
        assert torch.equal(mine, expected)


def test_fractions_are_taken_as_written() -> None:
    """0.1 * 30 is above 3 in floating point."""
    assert [Chunks.of(n, None, 0.1, None).kept for n in (1, 10, 11, 30, 70)] == [1, 1, 2, 3, 7]
    assert Chunks.of(50, 20, 0.1, None).total == 2 + 2 + 1


def test_kept_values_are_rounded_to_their_format() -> None:
    x = spread(50)
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        found = codec_named(f"topk(k=20, values={name})").round_trip(x)
        assert torch.equal(found, plain_top(x, 20).to(dtype).float())
    big = torch.tensor([1e6, -1e6, 1.0, math.inf])
    assert codec_named("topk(k=4, values=fp16)").round_trip(big).tolist() == [65504, -65504, 1, math.inf]


def test_random_positions_are_alike_for_all_who_share_the_noise() -> None:
    codec = codec_named("randk(k=5)")
    a, b = spread(30), spread(30, seed=1)
    kept = codec.round_trip(a, seeded()) != 0
    assert kept.sum() == 5
    assert torch.equal(codec.round_trip(b, seeded()), b * kept)
    # linear, and only the values travel
    (mine,), (theirs,) = codec.encode(a, seeded()()), codec.encode(b, seeded()())
    summed = codec.decode((mine + theirs,), 30, a.dtype, seeded()())
    assert torch.equal(summed, codec.round_trip(a + b, seeded()))
    assert torch.equal(codec.returned(summed, seeded()), summed)
    rescaled = codec_named("randk(k=5, rescale=True)")
    once = rescaled.round_trip(a, seeded())
    assert torch.equal(once, 6 * a * kept)
    assert torch.equal(rescaled.returned(once, seeded()), once)


def test_random_positions_are_uniform() -> None:
    draws, length, k = 20_000, 7, 3
    kept = codec_named(f"randk(k={k})").round_trip(torch.ones(draws, length), seeded()).mean(0)
    sigma = math.sqrt(k / length * (1 - k / length) / draws)
    assert ((kept - k / length).abs() < 4 * sigma).all()
    new = codec_named(f"randk(k={k})").round_trip(torch.ones(length), seeded(9))
    assert not torch.equal(new, codec_named(f"randk(k={k})").round_trip(torch.ones(length), seeded(2)))


def plain_sparseloco(x: Tensor, chunk: int, k: int) -> Tensor:
    """Card 10, number by number."""
    kept = torch.cat([plain_top(part, math.ceil(k * len(part) / chunk)) for part in x.split(chunk)])
    places = [i for i in range(len(x)) if kept[i] != 0]
    v = x[places]
    mean = v.mean()
    scale = 6 * v.std() / 4
    codes = ((v - mean) / scale + 2).round().clamp(0, 3)
    found = torch.zeros_like(x)
    for i, place in enumerate(places):
        found[place] = mean + (v - mean)[codes == codes[i]].mean()
    return found


@pytest.mark.parametrize("length", [20, 60, 75])
def test_sparseloco_is_as_the_card_writes_it(length: int) -> None:
    x = spread(length, dtype=torch.float64)
    found = codec_named("sparseloco(k=7, chunk=20)").round_trip(x)
    torch.testing.assert_close(found, plain_sparseloco(x, 20, 7), rtol=1e-5, atol=1e-5)
    assert len(set(found[found != 0].tolist())) in (3, 4)
    # bins send their own means, so what arrives is orthogonal to the error
    assert float((found - x) @ found) == pytest.approx(0, abs=1e-4 * float(found @ found))


def test_sparseloco_of_equal_numbers_is_exact() -> None:
    x = torch.tensor([0.0, 3.0, 0.0, 3.0, 0.0, 0.0])
    assert torch.equal(codec_named("sparseloco(k=2, chunk=6)").round_trip(x), x)


@pytest.mark.parametrize(
    ("codec", "expected"),
    [
        # card 9, DeMo: 32 of every 4096, int64 positions and fp32 values, or 12 bits and bf16
        ("topk(k=32, chunk=4096, index=int64)", 688128 // 7),
        ("topk(k=32, chunk=4096, index=packed, values=bf16)", 200704 // 7),
        ("sparseloco", 200872 // 7),
        ("topk(k=10485)", 587160 // 7),
        ("sign", 131072 + 4),
    ],
)
def test_golden_sizes_of_a_message_of_2_to_the_20(codec: str, expected: int) -> None:
    """Card 20: each to the seven others of eight workers."""
    assert payload_bytes(codec_named(codec).encode(torch.zeros(1 << 20), seeded()())) == expected

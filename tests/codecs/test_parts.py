"""What quantisers are made of: buckets, scales that do not cut off, and sums whose bits depend on the numbers alone."""

from __future__ import annotations

import pytest
import torch

from simdist.codecs.buckets import ScaleFormat, cut, joined, scale_for
from simdist.codecs.sums import tree_sum
from tests.codecs.noises import spread


@pytest.mark.parametrize("length", [1, 4, 5, 8, 13])
def test_buckets_hold_every_number_once(length: int) -> None:
    x = spread(2, length)
    rows = cut(x, 5)
    assert rows.shape == (2, -(-length // 5), min(5, length))
    assert torch.equal(joined(rows, length), x)
    assert not rows.flatten(-2)[:, length:].any()


@pytest.mark.parametrize("scale_format", ["fp32", "bf16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scales_are_the_least_that_reach_the_peak(scale_format: ScaleFormat, dtype: torch.dtype) -> None:
    peaks = torch.cat([spread(500, dtype=dtype).abs(), torch.tensor([1e-44, 3e-39, 0.0, 127.0], dtype=dtype)])
    scales = scale_for(peaks, 127, scale_format)
    assert scales.dtype == (torch.float32 if scale_format == "fp32" else torch.bfloat16)
    assert (scales.double() * 127 >= peaks.double()).all()
    below = scales.nextafter(torch.zeros_like(scales)).double() * 127
    assert ((below < peaks.double()) | (peaks == 0)).all()
    assert (scales[-2], scales[-1]) == (0, 1)


@pytest.mark.parametrize("length", [1, 2, 3, 7, 64, 1001])
def test_sums_do_not_depend_on_the_layout_or_the_other_messages(length: int) -> None:
    # of very different sizes, so that another order shows in the bits
    x = (10 * torch.randn(length, generator=torch.Generator().manual_seed(length), dtype=torch.float64)).exp()
    level = x.tolist()
    while len(level) > 1:
        level += [0.0] * (len(level) % 2)
        half = len(level) // 2
        level = [a + b for a, b in zip(level[:half], level[half:], strict=True)]
    many = x.expand(3, 2, -1)
    for found in (tree_sum(x), tree_sum(many)[2, 1], tree_sum(many.movedim(-1, 0).contiguous().movedim(0, -1))[1, 1]):
        assert found.item() == level[0]

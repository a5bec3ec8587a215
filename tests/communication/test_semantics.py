"""What members receive: the pairwise tree is one tree however it is computed, and stacked forms equal member loops."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from simdist.communication.semantics import (
    TreeSum,
    chunk,
    cover,
    join,
    pairwise_sum,
    split,
    stacked_all_to_all,
    stacked_chunks,
    stacked_gather,
    stacked_sum,
)
from simdist.errors import ProgramError

MEMBERS = st.integers(1, 40)
SIZES = st.integers(1, 5)
AXES = st.sampled_from([0, 1])
#: no deadline, as the first call of a kernel may take long
law = settings(deadline=None, max_examples=50)


def spread(*shape: int) -> Tensor:
    """Numbers of very different sizes, so that another order of summation shows in the last bits."""
    generator = torch.Generator().manual_seed(sum(shape))
    mantissa, exponent = (torch.randn(shape, generator=generator) for _ in range(2))
    return mantissa * 10.0 ** (4 * exponent)


def tree(values: list[Tensor]) -> Tensor:
    """The tree by its definition: both sides of the split summed by themselves."""
    if len(values) == 1:
        return values[0]
    middle = split(0, len(values))
    return tree(values[:middle]) + tree(values[middle:])


@law
@given(MEMBERS)
def test_sums_are_the_tree(count: int) -> None:
    x = spread(count, 8)
    total = pairwise_sum(list(x))
    assert torch.equal(total, tree(list(x)))
    torch.testing.assert_close(total.double(), x.double().sum(0), rtol=1e-4, atol=float(x.abs().max()) * 1e-5)


def test_the_tree_shows_in_the_bits() -> None:
    """The equalities of this file would say nothing if every order of summation gave the same bits."""
    x = spread(33, 64)
    left_to_right = x[0].clone()
    for value in x[1:]:
        left_to_right = left_to_right + value
    assert not torch.equal(pairwise_sum(list(x)), left_to_right)


@law
@given(MEMBERS, AXES, SIZES)
def test_stacked_sum_is_bitwise_the_sum_of_the_members(count: int, axis: int, other: int) -> None:
    x = spread(count, other, 3) if axis == 0 else spread(other, count, 3)
    expected = pairwise_sum(list(x.unbind(axis))).unsqueeze(axis)
    assert torch.equal(stacked_sum(x, axis), expected)


@pytest.mark.parametrize("count", [1, 2, 3, 6, 7, 8, 13, 32, 45])
@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 7, 64])
def test_a_sum_in_chunks_is_bitwise_the_sum_of_all_members(count: int, chunk: int) -> None:
    """In half precision, where another order of additions shows. No more partial sums wait than the tree is deep."""
    x = torch.randn(count, 50, generator=torch.Generator().manual_seed(count)).half()
    found = TreeSum(count)
    for first in range(0, count, chunk):
        found.add(x[first : first + chunk])
        assert len(found.waiting) <= count.bit_length()
    assert torch.equal(found.total(), stacked_sum(x, 0)[0])


def test_a_sum_in_chunks_wants_every_member() -> None:
    found = TreeSum(3)
    found.add(torch.ones(2, 1))
    with pytest.raises(AssertionError, match="every member"):
        found.total()


@law
@given(MEMBERS, st.data())
def test_blocks_of_members_reproduce_the_sum_bit_for_bit(count: int, data: st.DataObject) -> None:
    cuts = data.draw(st.sets(st.integers(1, count - 1))) if count > 1 else set()
    edges = [0, *sorted(cuts), count]
    x = list(spread(count, 8))
    partial = {
        (low, high): pairwise_sum(x[low:high]) for a, b in pairwise(edges) for low, high in cover(0, count, a, b)
    }
    assert torch.equal(join(0, count, partial), pairwise_sum(x))


@law
@given(MEMBERS, st.data())
def test_a_cover_is_made_of_its_members_once_each(count: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, count - 1))
    last = data.draw(st.integers(first, count))
    nodes = cover(0, count, first, last)
    assert [i for low, high in nodes for i in range(low, high)] == list(range(first, last))
    assert len(nodes) <= 2 * count.bit_length()


@pytest.mark.parametrize("dim", [-1, -2])
def test_chunks_are_views_that_join_to_the_whole(dim: int) -> None:
    x = torch.arange(36.0).reshape(6, 6)
    chunks = [chunk(x, dim, i, 3) for i in range(3)]
    assert torch.equal(torch.cat(chunks, dim), x)
    assert all(part.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() for part in chunks)


def test_uneven_chunks_are_refused() -> None:
    x = torch.zeros(1, 1, 2, 7)
    attempts: list[Callable[[], Tensor]] = [
        lambda: chunk(x, -1, 0, 3),
        lambda: stacked_chunks(x, -1, 3, 1),
        lambda: stacked_all_to_all(x, -1, -2, 3, 1),
    ]
    for attempt in attempts:
        with pytest.raises(ProgramError, match=r"shape \(1, ., 2, 7\), whose dimension -1 .* 3 equal chunks.*2 more"):
            attempt()


def members(x: Tensor, axis: int, size: int) -> list[Tensor]:
    """Each member's own tensor, without the axis; a replicated value is everybody's."""
    return [x.select(axis, i if x.shape[axis] > 1 else 0) for i in range(size)]


SHAPES = st.tuples(SIZES, AXES, st.booleans(), st.integers(1, 3))


def cohort_tensor(size: int, axis: int, replicated: bool, other: int) -> Tensor:
    """[R or 1, F or 1, 2 size, 3 size]."""
    lead = [other, other]
    lead[axis] = 1 if replicated else size
    return spread(*lead, 2 * size, 3 * size)


@law
@given(SHAPES, st.sampled_from([-1, -2]))
def test_stacked_chunks_are_each_members_own(shape: tuple[int, int, bool, int], dim: int) -> None:
    size, axis, *_ = shape
    x = cohort_tensor(*shape)
    expected = torch.stack([chunk(own, dim, i, size) for i, own in enumerate(members(x, axis, size))], axis)
    assert torch.equal(stacked_chunks(x, dim, size, axis), expected)


@law
@given(SHAPES, st.sampled_from([-1, -2]))
def test_stacked_gather_joins_the_members(shape: tuple[int, int, bool, int], dim: int) -> None:
    size, axis, *_ = shape
    x = cohort_tensor(*shape)
    expected = torch.cat(members(x, axis, size), dim).unsqueeze(axis)
    assert torch.equal(stacked_gather(x, dim, size, axis), expected)


@law
@given(SHAPES, st.sampled_from([-1, -2]), st.sampled_from([-1, -2]))
def test_stacked_all_to_all_deals_chunks(shape: tuple[int, int, bool, int], split_dim: int, concat_dim: int) -> None:
    size, axis, *_ = shape
    x = cohort_tensor(*shape)
    own = members(x, axis, size)
    received = [torch.cat([chunk(y, split_dim, i, size) for y in own], concat_dim) for i in range(size)]
    got = stacked_all_to_all(x, split_dim, concat_dim, size, axis)
    assert torch.equal(got, torch.stack(received, axis))

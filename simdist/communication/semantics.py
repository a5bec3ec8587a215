"""What each member of a collective receives, as plain tensor functions. No bytes, no seconds.

Sums are pairwise trees over the member index: adjacent pairs first, an odd last one carried up. The tree depends on
the number of members alone, so any split of the members into contiguous blocks can compute partial sums of whole
subtrees and still reproduce the undivided sum bit for bit (:func:`cover`, :func:`join`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from simdist.errors import ProgramError

Node = tuple[int, int]
"""A subtree of the summation tree: members low (inclusive) to high (exclusive)."""


def split(low: int, high: int) -> int:
    """Return where the tree divides members ``low``..``high``: after the largest power of two below their number.

    >>> split(0, 6), split(4, 7)
    (4, 6)
    """
    count = high - low
    return low + (1 << (count - 1).bit_length() - 1)


def pairwise_sum(values: Sequence[Tensor]) -> Tensor:
    """Sum tensors by the pairwise tree; one value comes back as it is."""
    level = list(values)
    while len(level) > 1:
        paired = [level[i] + level[i + 1] for i in range(0, len(level) - 1, 2)]
        level = paired + level[len(paired) * 2 :]
    return level[0]


def stacked_sum(x: Tensor, axis: int) -> Tensor:
    """Sum along a leading worker axis by the same tree, keeping the axis with size one."""
    while x.shape[axis] > 1:
        even = x.shape[axis] // 2 * 2
        pairs = x.narrow(axis, 0, even).unflatten(axis, (-1, 2))
        summed = pairs.select(axis + 1, 0) + pairs.select(axis + 1, 1)
        x = torch.cat([summed, x.narrow(axis, even, 1)], axis) if even < x.shape[axis] else summed
    return x


def cover(low: int, high: int, first: int, last: int) -> list[Node]:
    """Return the largest subtrees of the tree over ``low``..``high`` that lie inside members ``first``..``last``.

    >>> cover(0, 8, 2, 5)
    [(2, 4), (4, 5)]
    """
    if last <= low or high <= first:
        return []
    if first <= low and high <= last:
        return [(low, high)]
    middle = split(low, high)
    return cover(low, middle, first, last) + cover(middle, high, first, last)


def join(low: int, high: int, partial: dict[Node, Tensor]) -> Tensor:
    """Sum the tree over ``low``..``high`` from partial sums of a cover of all its members."""
    if (low, high) in partial:
        return partial[low, high]
    middle = split(low, high)
    return join(low, middle, partial) + join(middle, high, partial)


class TreeSum:
    """The pairwise tree's sum of members who come in chunks, in order: one partial sum for each level of the tree.

    Whatever the chunks, the bits are those of :func:`stacked_sum` over all members at once.

    Attributes:
        waiting: subtrees, as (low, high, sum), whose sisters have not come yet.
    """

    def __init__(self, members: int) -> None:
        self.members = members
        self.waiting: list[tuple[int, int, Tensor]] = []

    def add(self, values: Tensor) -> None:
        """Add the next members' values, ``[members of the chunk, ...]``."""
        first = self.waiting[-1][1] if self.waiting else 0
        for low, high in cover(0, self.members, first, first + len(values)):
            own = values[low - first : high - first]
            # a lone row is copied, so that it does not keep its whole chunk in memory
            self.waiting.append((low, high, own[0].clone() if high - low == 1 else stacked_sum(own, 0)[0]))
            while len(self.waiting) > 1 and self._siblings():
                (low, _, left), (_, high, right) = self.waiting[-2:]
                self.waiting[-2:] = [(low, high, left + right)]

    def _siblings(self) -> bool:
        """Whether the last two partial sums are those of a node's two children."""
        (low, middle, _), (_, high, _) = self.waiting[-2:]
        # left children have a power of two of members, at a multiple of twice that; only the last right one is smaller
        count = middle - low
        return low % (2 * count) == 0 and (high - middle == count or high == self.members)

    def total(self) -> Tensor:
        """Return the sum of all members."""
        ((low, high, found),) = self.waiting
        assert (low, high) == (0, self.members), "every member has been added"
        return found


def chunk(x: Tensor, dim: int, index: int, size: int) -> Tensor:
    """Return the ``index``-th of ``size`` equal chunks along ``dim`` (a view).

    Raises:
        ProgramError: when ``dim`` does not divide into ``size`` equal chunks.
    """
    each = chunk_length(x, dim, size)
    return x.narrow(dim, index * each, each)


def chunk_length(x: Tensor, dim: int, size: int) -> int:
    """Return the length of each of ``size`` equal chunks along ``dim``.

    Raises:
        ProgramError: when ``dim`` does not divide.
    """
    each, rest = divmod(x.shape[dim], size)
    if rest:
        raise ProgramError(
            f"got shape {tuple(x.shape)}, whose dimension {dim} does not divide into {size} equal chunks; "
            f"expected a multiple of {size}: pad it with {size - rest} more"
        )
    return each


def stacked_chunks(x: Tensor, dim: int, size: int, axis: int) -> Tensor:
    """Deal ``size`` equal chunks of ``dim`` to the members of leading worker axis ``axis``.

    ``x`` holds one value for all members (size one on ``axis``) or each member's own; member i keeps chunk i.
    """
    parts = x.unflatten(dim, (size, chunk_length(x, dim, size)))
    at = dim - 1 if dim < 0 else dim
    if x.shape[axis] == 1:
        dealt: Tensor = parts.squeeze(axis).movedim(at, axis)
        return dealt
    own: Tensor = torch.diagonal(parts, dim1=axis, dim2=at)
    return own.movedim(-1, axis)


def stacked_gather(x: Tensor, dim: int, size: int, axis: int) -> Tensor:
    """Concatenate along ``dim`` what the members of leading worker axis ``axis`` hold; the axis stays with size one."""
    if x.shape[axis] == 1:
        x = x.expand(*(size if i == axis else n for i, n in enumerate(x.shape)))
    return x.movedim(axis, dim - 1).flatten(dim - 1, dim).unsqueeze(axis)


def stacked_all_to_all(x: Tensor, split_dim: int, concat_dim: int, size: int, axis: int) -> Tensor:
    """Member i receives chunk i of every member's ``split_dim``, joined along ``concat_dim``."""
    if x.shape[axis] == 1:
        x = x.expand(*(size if i == axis else n for i, n in enumerate(x.shape)))
    parts = x.unflatten(split_dim, (size, chunk_length(x, split_dim, size)))
    # now: [.., source, .., destination, chunk, ..]; the destination becomes the worker axis, the source is joined
    moved = parts.transpose(axis, split_dim - 1)
    joined: Tensor = moved.movedim(split_dim - 1, concat_dim - 1).flatten(concat_dim - 1, concat_dim)
    return joined

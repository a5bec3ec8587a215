"""Recursive halving and doubling among a power of two of members, and the folding that leaves such a core.

After Thakur, Rabenseifner & Gropp 2005, "Optimization of collective communication operations in MPICH", section 4.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from simdist.communication.plans.moves import Column, Moves, Phase


class Folding(NamedTuple):
    """Who stays in the core when members are folded to a power of two: of the first pairs, the odd members.

    Attributes:
        core: the members that stay; with m of them, m is the largest power of two up to the number of members.
        first: per core member the first of the members that it stands for (itself, or the pair's even one).
        even: the members that are folded away.
        odd: for each of them the core member that stands in for it.
    """

    core: Column
    first: Column
    even: Column
    odd: Column

    @classmethod
    def of(cls, members: int) -> Folding:
        """Fold as MPICH does (src/mpi/coll/allreduce/allreduce_intra_reduce_scatter_allgather.c)."""
        size = 1 << (members.bit_length() - 1)
        even = np.arange(0, 2 * (members - size), 2)
        alone = np.arange(2 * len(even), members)
        odd = even + 1
        return cls(np.concatenate([odd, alone]), np.concatenate([even, alone]), even, odd)

    def fold(self, payload_bytes: int) -> tuple[Phase, ...]:
        """Return the step that adds the whole payload of those folded away to their stand-ins', if there are any."""
        return tuple(phase.mirrored() for phase in self.unfold(payload_bytes))

    def unfold(self, payload_bytes: int) -> tuple[Phase, ...]:
        """Return the step that hands the whole payload from the stand-ins to those folded away, if there are any."""
        if not len(self.even):
            return ()
        nothing = np.zeros_like(self.even)
        return (Phase(1, lambda _: Moves(self.odd, self.even, nothing, nothing + payload_bytes)),)


def halving(who: Column, cut: Column) -> Phase:
    """Reduce-scatter among a power of two: place c of ``who`` ends with the sum of chunk c.

    In each step partners at half the distance of before exchange halves of what they still sum up.
    """
    return doubling(who, cut).mirrored()


def doubling(who: Column, cut: Column) -> Phase:
    """All-gather among a power of two: in each step partners at twice the distance exchange all that they have."""
    place = np.arange(len(who))

    def moves(step: int) -> Moves:
        reach = 1 << step
        have = place // reach * reach
        return Moves(who, who[place ^ reach], cut[have], cut[have + reach])

    return Phase(len(who).bit_length() - 1, moves)


def doubling_sent(cut: Column) -> Column:
    """Return the bytes that each place sends in :func:`doubling` (and receives in :func:`halving`)."""
    place = np.arange(len(cut) - 1)
    reaches = [1 << step for step in range((len(cut) - 1).bit_length() - 1)]
    windows = [cut[place // reach * reach + reach] - cut[place // reach * reach] for reach in reaches]
    return sum(windows, start=np.zeros_like(place))


def bit_reversed(count: int) -> Column:
    """Return the places 0 to ``count`` - 1, a power of two, in the order of their bits read backwards."""
    order = np.zeros(1, dtype=np.int64)
    while len(order) < count:
        order = np.concatenate([2 * order, 2 * order + 1])
    return order

"""Patterns of steps that several plans are made of; each returns one :class:`Phase`.

``who`` lists the members that take part, by their place in the pattern.
"""

from __future__ import annotations

import numpy as np

from simdist.communication.plans.moves import Column, Moves, Phase, Turn


def ring_reduce_scatter(who: Column, low: Column, high: Column, hop: int = 1) -> Phase:
    """Pass partial sums around: n - 1 steps, then place c has the sum of bytes ``low[c]`` to ``high[c]``."""
    return _around(who, low, high, hop, 1)


def ring_all_gather(who: Column, low: Column, high: Column, hop: int = 1) -> Phase:
    """Pass what each place c has, bytes ``low[c]`` to ``high[c]``, around to all in n - 1 steps."""
    return _around(who, low, high, hop, 0)


def _around(who: Column, low: Column, high: Column, hop: int, late: int) -> Phase:
    n = len(who)
    place = np.arange(n)
    target = who[(place + hop) % n]
    sizes = high - low

    def moves(step: int) -> Moves:
        chunk = (place - hop * (step + late)) % n
        return Moves(who, target, low[chunk], high[chunk], adds=late == 1)

    return Phase(n - 1, moves, alike=bool((sizes == sizes[0]).all()), turn=Turn(sizes, hop, late))


def pairwise_exchange(payload_bytes: int, cut: Column) -> Phase:
    """All-to-all in n - 1 steps: in step s each member i sends member i + 1 + s its part."""
    n = len(cut) - 1
    member = np.arange(n)
    buffer = member * payload_bytes

    def moves(step: int) -> Moves:
        target = (member + 1 + step) % n
        return Moves(member, target, buffer + cut[target], buffer + cut[target + 1])

    return Phase(n - 1, moves)


def chain_broadcast(who: Column, cut: Column) -> Phase:
    """Hand the bytes of the first place on from place to place, one piece between cuts per step.

    Each place forwards a piece one step after it came in.
    """
    pieces = len(cut) - 1

    def moves(step: int) -> Moves:
        place = np.arange(max(0, step - pieces + 1), min(len(who) - 1, step + 1))
        return Moves(who[place], who[place + 1], cut[step - place], cut[step - place + 1])

    return Phase(pieces + len(who) - 2, moves)


def binomial_broadcast(who: Column, payload_bytes: int) -> Phase:
    """Double the places that have the first one's bytes in each step, the farthest first."""

    def moves(step: int) -> Moves:
        source, target, _ = _branches(len(who), step)
        nothing = np.zeros_like(source)
        return Moves(who[source], who[target], nothing, nothing + payload_bytes)

    return Phase(tree_depth(len(who)), moves)


def binomial_scatter(who: Column, cut: Column) -> Phase:
    """Give half of what each holder has away in each step: place c ends with chunk c of the first one's bytes."""

    def moves(step: int) -> Moves:
        source, target, last = _branches(len(who), step)
        return Moves(who[source], who[target], cut[target], cut[last])

    return Phase(tree_depth(len(who)), moves)


def tree_depth(members: int) -> int:
    """Return the steps that it takes to reach all members when the reached double in each: log2 n, rounded up."""
    return (members - 1).bit_length()


def subtree_ends(members: int) -> Column:
    """Return where the subtree of each place of the binomial tree ends; it starts at the place itself."""
    place = np.arange(members)
    lowest_bit = np.where(place == 0, 1 << tree_depth(members), place & -place)
    return np.minimum(place + lowest_bit, members)


def child_counts(members: int) -> Column:
    """Return how many places each place of the binomial tree sends to: one per power of two within its subtree."""
    reach = subtree_ends(members) - np.arange(members) - 1
    return np.array([int(one).bit_length() for one in reach], dtype=np.int64)


def _branches(members: int, step: int) -> tuple[Column, Column, Column]:
    """Return who sends to whom in a step of the binomial tree, and where the target's subtree ends."""
    reach = 1 << (tree_depth(members) - 1 - step)
    source = np.arange(0, members - reach, 2 * reach)
    target = source + reach
    return source, target, np.minimum(target + reach, members)


def from_root(members: int, root: int) -> Column:
    """Return the members in the order of their distance from the root."""
    return (root + np.arange(members)) % members

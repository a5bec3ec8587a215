"""Bidirectional ring plan: one half of the payload each way, for links that carry both directions at once."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from simdist.communication.plans.moves import Column, Moves, Phase, cuts
from simdist.communication.plans.plan import Plan, check_op, collectives
from simdist.communication.plans.steps import from_root, ring_all_gather, ring_reduce_scatter


@collectives.register("bidirectional_ring")
class BidirectionalRing(Plan):
    """Rings both ways at once: each chunk is cut in two, one half goes up the ring and the other down.

    It sends what ``ring`` sends, over twice as many links. Sent by member i, with a_j and b_j the halves of chunk j:

    ============== ============================================== ==================
    operation      bytes sent by member i                         rounds
    ============== ============================================== ==================
    reduce_scatter S - c_i                                        n - 1
    all_gather     S - a_(i+1) - b_(i-1)                          n - 1
    all_reduce     the sum of both                                2 (n - 1)
    all_to_all     S - c_i                                        n/2, rounded down (pairwise, to i+k and i-k)
    broadcast      2 S by the root, S by others but the two ends  n - 1 + n/2, rounded down
    ============== ============================================== ==================

    The broadcast sends the whole message both ways, each to half of the members, in n pieces. This plan is the torus
    ring of TPU pods and Blue Gene (Jain & Sabharwal 2010, "Optimal bucket algorithms for large MPI collectives on torus
    interconnects") in one dimension.
    """

    name: ClassVar[str] = "bidirectional_ring"

    def phases(self, op: str, payload_bytes: int, members: int, root: int) -> tuple[Phase, ...]:
        check_op(op)
        cut = cuts(payload_bytes, members)
        if op == "all_to_all":
            return (_both_ways_exchange(payload_bytes, cut),)
        if op == "broadcast":
            return (_both_ways_chain(from_root(members, root), cut),)
        who, low, middle, high = np.arange(members), cut[:-1], _middles(cut), cut[1:]
        scatter = _together(ring_reduce_scatter(who, low, middle, 1), ring_reduce_scatter(who, middle, high, -1))
        gather = _together(ring_all_gather(who, low, middle, 1), ring_all_gather(who, middle, high, -1))
        return {"reduce_scatter": (scatter,), "all_gather": (gather,), "all_reduce": (scatter, gather)}[op]

    def sent(self, op: str, payload_bytes: int, members: int, root: int = 0) -> tuple[int, ...]:
        check_op(op)
        if members == 1:
            return (0,)
        if op == "broadcast":
            up = members // 2
            ends = {up % members, (up + 1) % members} - {0}
            both = up < members - 1
            sent = [0 if d in ends else payload_bytes for d in range(members)]
            sent[0] = 2 * payload_bytes if both else payload_bytes
            return tuple(sent[(i - root) % members] for i in range(members))
        cut = cuts(payload_bytes, members)
        lower, upper = _middles(cut) - cut[:-1], cut[1:] - _middles(cut)
        scatter = payload_bytes - lower - upper
        gather = payload_bytes - np.roll(lower, -1) - np.roll(upper, 1)
        by_op = {"all_gather": gather, "all_reduce": scatter + gather}
        return tuple(by_op.get(op, scatter).tolist())


def _middles(cut: Column) -> Column:
    return (cut[:-1] + cut[1:] + 1) // 2


def _together(one: Phase, other: Phase) -> Phase:
    """Run two rings of equal length side by side; what a member sends to one target in a step is one message."""
    first, second = one.moves(0), other.moves(0)
    source, target = np.concatenate([first.source, second.source]), np.concatenate([first.target, second.target])
    order = np.lexsort((target, source))
    source, target = source[order], target[order]

    def moves(step: int) -> Moves:
        up, down = one.moves(step), other.moves(step)
        start, stop = np.concatenate([up.start, down.start]), np.concatenate([up.stop, down.stop])
        return Moves(source, target, start[order], stop[order], up.adds)

    return Phase(one.steps, moves, one.alike and other.alike)


def _joined(one: Moves, other: Moves) -> Moves:
    source, target, start, stop = (np.concatenate(pair) for pair in zip(one[:4], other[:4], strict=True))
    order = np.lexsort((target, source))
    return Moves(source[order], target[order], start[order], stop[order], one.adds)


def _both_ways_exchange(payload_bytes: int, cut: Column) -> Phase:
    n = len(cut) - 1
    member = np.arange(n)
    buffer = member * payload_bytes

    def one_way(hop: int) -> Moves:
        target = (member + hop) % n
        return Moves(member, target, buffer + cut[target], buffer + cut[target + 1])

    def moves(step: int) -> Moves:
        up = one_way(step + 1)
        # with an even number of members the one opposite is reached both ways
        return up if 2 * (step + 1) == n else _joined(up, one_way(-step - 1))

    return Phase(n // 2, moves)


def _both_ways_chain(who: Column, cut: Column) -> Phase:
    n, pieces = len(who), len(cut) - 1
    up, down = n // 2, n - 1 - n // 2

    def one_way(step: int, hop: int, reach: int) -> Moves:
        place = np.arange(max(0, step - pieces + 1), min(reach, step + 1))
        return Moves(who[hop * place], who[hop * (place + 1)], cut[step - place], cut[step - place + 1])

    def moves(step: int) -> Moves:
        return _joined(one_way(step, 1, up), one_way(step, -1, down))

    return Phase(pieces + up - 1, moves)

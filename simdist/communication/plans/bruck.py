"""Bruck plan: logarithmic numbers of rounds for any number of members, for short messages."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from simdist.communication.plans.moves import Column, Moves, Phase, cuts
from simdist.communication.plans.plan import Plan, check_op, collectives
from simdist.communication.plans.steps import binomial_broadcast, child_counts, from_root, tree_depth


@collectives.register("bruck")
class Bruck(Plan):
    """Everybody talks to the member 1, 2, 4, ... away, in log2 n rounds, rounded up, for any n.

    Sent by member i, with c_j the size of chunk j; sums run over the rounds k = 0, 1, ...:

    ============== ============================================================= ==================
    operation      bytes sent by member i                                        rounds
    ============== ============================================================= ==================
    all_gather     c_i to c_(i+b-1) for b = 2^k (n - 2^k in the last round)      log2 n
    reduce_scatter S - c_i (the all-gather run backwards)                        log2 n
    all_reduce     the sum of both                                               2 log2 n
    all_to_all     c_(i+d-d mod 2^k) for each distance d < n with bit k set      log2 n
    broadcast      S times its children in a binomial tree                       log2 n
    ============== ============================================================= ==================

    An all-to-all so sends about (n/2) log2 n chunks instead of n - 1: forwarding costs bytes and saves rounds.

    Source: Bruck, Ho, Kipnis, Upfal & Weathersby 1997, "Efficient algorithms for all-to-all communications in multiport
    message-passing systems".
    """

    name: ClassVar[str] = "bruck"

    def phases(self, op: str, payload_bytes: int, members: int, root: int) -> tuple[Phase, ...]:
        check_op(op)
        if op == "broadcast":
            return (binomial_broadcast(from_root(members, root), payload_bytes),)
        cut = cuts(payload_bytes, members)
        if op == "all_to_all":
            return (_exchange(payload_bytes, cut),)
        gather = _gather(cut)
        scatter = gather.mirrored()
        return {"reduce_scatter": (scatter,), "all_gather": (gather,), "all_reduce": (scatter, gather)}[op]

    def sent(self, op: str, payload_bytes: int, members: int, root: int = 0) -> tuple[int, ...]:
        check_op(op)
        if op == "broadcast":
            return tuple((np.roll(child_counts(members), root) * payload_bytes).tolist())
        member, own = np.arange(members), np.diff(cuts(payload_bytes, members))
        if op == "all_to_all":
            sent = np.zeros_like(member)
            for bit in range(tree_depth(members)):
                for distance in range(1, members):
                    if distance >> bit & 1:
                        sent += own[(member + (distance >> bit << bit)) % members]
            return tuple(sent.tolist())
        scatter = payload_bytes - own
        twice = np.concatenate(([0], np.cumsum(np.concatenate([own, own]))))
        blocks = [min(1 << bit, members - (1 << bit)) for bit in range(tree_depth(members))]
        gather = sum((twice[member + count] - twice[member] for count in blocks), start=np.zeros_like(member))
        by_op = {"all_gather": gather, "all_reduce": scatter + gather}
        return tuple(by_op.get(op, scatter).tolist())


def _gather(cut: Column) -> Phase:
    """In round k member i hands its chunks i to i + 2^k - 1, counted around the end, to member i - 2^k."""
    n = len(cut) - 1
    member = np.arange(n)

    def moves(step: int) -> Moves:
        reach = 1 << step
        last = member + min(reach, n - reach)
        around = np.maximum(last - n, 0)
        start = np.stack([cut[member], np.zeros(n, dtype=np.int64)], axis=1).ravel()
        stop = np.stack([cut[np.minimum(last, n)], cut[around]], axis=1).ravel()
        pieces = Moves(np.repeat(member, 2), np.repeat((member - reach) % n, 2), start, stop)
        return pieces.where(np.stack([around >= 0, around > 0], axis=1).ravel())

    return Phase(tree_depth(n), moves)


def _exchange(payload_bytes: int, cut: Column) -> Phase:
    """In round k what is to go a distance with bit k set goes 2^k further."""
    n = len(cut) - 1

    def moves(step: int) -> Moves:
        reach = 1 << step
        distance = np.arange(n)
        distance = distance[distance >> step & 1 == 1]
        place, far = (grid.ravel() for grid in np.meshgrid(np.arange(n), distance, indexing="ij"))
        origin = (place - far % reach) % n
        goal = (origin + far) % n
        buffer = origin * payload_bytes
        return Moves(place, (place + reach) % n, buffer + cut[goal], buffer + cut[goal + 1])

    return Phase(tree_depth(n), moves)

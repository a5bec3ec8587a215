"""Ring plan: every member talks to its neighbour, bandwidth-optimal for long messages."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from simdist.communication.plans.moves import Phase, cuts
from simdist.communication.plans.plan import Plan, check_op, collectives
from simdist.communication.plans.steps import (
    chain_broadcast,
    from_root,
    pairwise_exchange,
    ring_all_gather,
    ring_reduce_scatter,
)


@collectives.register("ring")
class Ring(Plan):
    """Neighbours in a ring, as NCCL runs it: n - 1 rounds of S/n bytes, twice for an all-reduce.

    Sent by member i, with c_j the size of chunk j (S/n if it divides):

    ============== ============================== ====================
    operation      bytes sent by member i         rounds
    ============== ============================== ====================
    reduce_scatter S - c_i                        n - 1
    all_gather     S - c_(i+1)                    n - 1
    all_reduce     2 S - c_i - c_(i+1)            2 (n - 1)
    all_to_all     S - c_i                        n - 1 (pairwise, i to i+k)
    broadcast      S, the last of the chain 0     2 (n - 1)
    ============== ============================== ====================

    The broadcast is a pipelined chain from the root along the ring, in n chunks (NCCL's form): it sends no more than
    the necessary (n - 1) S in all and takes about the time of an all-reduce.
    """

    name: ClassVar[str] = "ring"

    def phases(self, op: str, payload_bytes: int, members: int, root: int) -> tuple[Phase, ...]:
        check_op(op)
        cut = cuts(payload_bytes, members)
        if op == "all_to_all":
            return (pairwise_exchange(payload_bytes, cut),)
        if op == "broadcast":
            return (chain_broadcast(from_root(members, root), cut),)
        who = np.arange(members)
        scatter, gather = ring_reduce_scatter(who, cut[:-1], cut[1:]), ring_all_gather(who, cut[:-1], cut[1:])
        return {"reduce_scatter": (scatter,), "all_gather": (gather,), "all_reduce": (scatter, gather)}[op]

    def sent(self, op: str, payload_bytes: int, members: int, root: int = 0) -> tuple[int, ...]:
        check_op(op)
        if members == 1:
            return (0,)
        if op == "broadcast":
            last = (root - 1) % members
            return tuple(0 if i == last else payload_bytes for i in range(members))
        size = np.diff(cuts(payload_bytes, members))
        scatter, gather = payload_bytes - size, payload_bytes - np.roll(size, -1)
        by_op = {"all_gather": gather, "all_reduce": scatter + gather}
        return tuple(by_op.get(op, scatter).tolist())

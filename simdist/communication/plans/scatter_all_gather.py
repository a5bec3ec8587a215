"""Scatter and all-gather plan (van de Geijn): long broadcasts without a root that sends whole copies."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from simdist.communication.plans.moves import Phase, cuts
from simdist.communication.plans.plan import Plan, check_op, collectives
from simdist.communication.plans.ring import Ring
from simdist.communication.plans.steps import binomial_scatter, from_root, ring_all_gather, subtree_ends


@collectives.register("scatter_all_gather")
class ScatterAllGather(Plan):
    """A broadcast as a binomial scatter of n chunks and a ring all-gather; the other operations as ``ring``.

    The member at distance d from the root sends its subtree's chunks without its own, then S - c_(d+1), in
    log2 n (rounded up) + n - 1 rounds.

    Source: MPICH, src/mpi/coll/bcast/bcast_intra_scatter_ring_allgather.c. As there, members gather without regard to
    what the scatter already brought them.
    """

    name: ClassVar[str] = "scatter_all_gather"

    def phases(self, op: str, payload_bytes: int, members: int, root: int) -> tuple[Phase, ...]:
        check_op(op)
        if op != "broadcast":
            return Ring().phases(op, payload_bytes, members, root)
        who, cut = from_root(members, root), cuts(payload_bytes, members)
        return (binomial_scatter(who, cut), ring_all_gather(who, cut[:-1], cut[1:]))

    def sent(self, op: str, payload_bytes: int, members: int, root: int = 0) -> tuple[int, ...]:
        check_op(op)
        if op != "broadcast" or members == 1:
            return Ring().sent(op, payload_bytes, members, root)
        cut = cuts(payload_bytes, members)
        scatter = cut[subtree_ends(members)] - cut[1:]
        gather = payload_bytes - np.roll(np.diff(cut), -1)
        return tuple(np.roll(scatter + gather, root).tolist())

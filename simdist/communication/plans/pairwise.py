"""Pairwise plan: the direct plan with one partner at a time, so that no link is shared by messages of one member."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from simdist.communication.plans.direct import Direct
from simdist.communication.plans.moves import Moves, Phase, cuts
from simdist.communication.plans.plan import Plan, check_op, collectives
from simdist.communication.plans.steps import from_root, pairwise_exchange


@collectives.register("pairwise")
class Pairwise(Plan):
    """What ``direct`` sends, in n - 1 rounds: in round k member i sends to i + k and receives from i - k.

    The bytes are those of ``direct``; all operations take n - 1 rounds, an all-reduce 2 (n - 1). MPICH reduces and
    scatters long messages so (src/mpi/coll/reduce_scatter_block/reduce_scatter_block_intra_pairwise.c).
    """

    name: ClassVar[str] = "pairwise"

    def phases(self, op: str, payload_bytes: int, members: int, root: int) -> tuple[Phase, ...]:
        check_op(op)
        if op == "broadcast":
            who, ends = from_root(members, root), np.array([0, payload_bytes])
            return (Phase(members - 1, lambda step: Moves(who[:1], who[step + 1 : step + 2], ends[:1], ends[1:])),)
        cut = cuts(payload_bytes, members)
        if op == "all_to_all":
            return (pairwise_exchange(payload_bytes, cut),)
        member = np.arange(members)

        def to_owner(step: int) -> Moves:
            target = (member + 1 + step) % members
            return Moves(member, target, cut[target], cut[target + 1], adds=True)

        scatter = Phase(members - 1, to_owner)
        gather = scatter.mirrored()
        return {"reduce_scatter": (scatter,), "all_gather": (gather,), "all_reduce": (scatter, gather)}[op]

    def sent(self, op: str, payload_bytes: int, members: int, root: int = 0) -> tuple[int, ...]:
        return Direct().sent(op, payload_bytes, members, root)

"""Recursive doubling plan: whole messages in the fewest rounds, for payloads so short that only latency counts."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from simdist.communication.plans.bruck import Bruck
from simdist.communication.plans.halving_doubling import HalvingDoubling
from simdist.communication.plans.hypercube import Folding
from simdist.communication.plans.moves import Column, Moves, Phase
from simdist.communication.plans.plan import Plan, check_op, collectives


@collectives.register("recursive_doubling")
class RecursiveDoubling(Plan):
    """Partners at twice the distance in each round exchange whole sums: log2 n rounds for an all-reduce.

    Members beyond a power of two m are folded as in ``halving_doubling``. Sent by a member:

    ============== ============================================================= =====================
    operation      bytes                                                         rounds
    ============== ============================================================= =====================
    all_reduce     S log2 m by the core; of a pair S more by the even and by the log2 m (+ 2)
                   odd member
    all_gather     as ``halving_doubling`` if n is a power of two, else as       log2 n, rounded up
                   ``bruck`` (MPICH's choice)
    others         as ``halving_doubling``
    ============== ============================================================= =====================

    Source: MPICH, src/mpi/coll/allreduce/allreduce_intra_recursive_doubling.c.
    """

    name: ClassVar[str] = "recursive_doubling"

    def phases(self, op: str, payload_bytes: int, members: int, root: int) -> tuple[Phase, ...]:
        check_op(op)
        if op != "all_reduce":
            return _instead(op, members).phases(op, payload_bytes, members, root)
        folding = Folding.of(members)
        exchange = _exchange(folding.core, payload_bytes)
        return (*folding.fold(payload_bytes), exchange, *folding.unfold(payload_bytes))

    def sent(self, op: str, payload_bytes: int, members: int, root: int = 0) -> tuple[int, ...]:
        check_op(op)
        if op != "all_reduce":
            return _instead(op, members).sent(op, payload_bytes, members, root)
        folding = Folding.of(members)
        copies = np.zeros(members, dtype=np.int64)
        copies[folding.core] = members.bit_length() - 1
        copies[folding.even] += 1
        copies[folding.odd] += 1
        return tuple((copies * payload_bytes).tolist())


def _instead(op: str, members: int) -> Plan:
    power_of_two = members & (members - 1) == 0
    return Bruck() if op == "all_gather" and not power_of_two else HalvingDoubling()


def _exchange(who: Column, payload_bytes: int) -> Phase:
    place = np.arange(len(who))
    nothing = np.zeros_like(place)

    def moves(step: int) -> Moves:
        return Moves(who, who[place ^ (1 << step)], nothing, nothing + payload_bytes, adds=True)

    return Phase(len(who).bit_length() - 1, moves)

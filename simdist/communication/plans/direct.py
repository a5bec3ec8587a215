"""Direct plan: everybody sends straight to whom it concerns, the fewest rounds."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from simdist.communication.plans.moves import Moves, Phase, cuts
from simdist.communication.plans.plan import Plan, check_op, collectives


@collectives.register("direct")
class Direct(Plan):
    """Straight to whom it concerns: one round (two for an all-reduce), latency-optimal for short messages.

    Sent by member i, with c_j the size of chunk j (S/n if it divides):

    ============== ============================== ======
    operation      bytes sent by member i         rounds
    ============== ============================== ======
    reduce_scatter S - c_i                        1
    all_gather     (n - 1) c_i                    1
    all_reduce     S - c_i + (n - 1) c_i          2
    all_to_all     S - c_i                        1
    broadcast      (n - 1) S by the root          1
    ============== ============================== ======
    """

    name: ClassVar[str] = "direct"

    def phases(self, op: str, payload_bytes: int, members: int, root: int) -> tuple[Phase, ...]:
        check_op(op)
        if op == "broadcast":
            others = np.flatnonzero(np.arange(members) != root)
            nothing = np.zeros_like(others)
            return (Phase(1, lambda _: Moves(nothing + root, others, nothing, nothing + payload_bytes)),)
        cut = cuts(payload_bytes, members)
        source, target = np.nonzero(~np.eye(members, dtype=bool))
        if op == "all_to_all":
            buffer = source * payload_bytes
            return (Phase(1, lambda _: Moves(source, target, buffer + cut[target], buffer + cut[target + 1])),)
        scatter = Phase(1, lambda _: Moves(source, target, cut[target], cut[target + 1], adds=True))
        gather = Phase(1, lambda _: Moves(source, target, cut[source], cut[source + 1]))
        return {"reduce_scatter": (scatter,), "all_gather": (gather,), "all_reduce": (scatter, gather)}[op]

    def sent(self, op: str, payload_bytes: int, members: int, root: int = 0) -> tuple[int, ...]:
        check_op(op)
        if op == "broadcast":
            return tuple((members - 1) * payload_bytes if i == root else 0 for i in range(members))
        size = np.diff(cuts(payload_bytes, members))
        scatter, gather = payload_bytes - size, (members - 1) * size
        by_op = {"all_gather": gather, "all_reduce": scatter + gather}
        return tuple(by_op.get(op, scatter).tolist())

"""Direct plan: everybody sends straight to whom it concerns, the fewest rounds."""

from __future__ import annotations

from simdist.communication.plans.plan import Move, Phase, Plan, check_op, chunk_sizes, plans


@plans.register("direct")
class Direct(Plan):
    """Point-to-point collectives: one round (two for an all-reduce), latency-optimal for short messages.

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

    name = "direct"

    def phases(self, op: str, members: int, root: int) -> tuple[Phase, ...]:
        check_op(op)
        n = members
        pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
        to_owner = tuple(Move(i, j, (j,)) for i, j in pairs)
        to_all = tuple(Move(i, j, (i,)) for i, j in pairs)
        from_root = tuple(Move(root, j, tuple(range(n))) for j in range(n) if j != root)
        scatter = Phase("reduce", 1, lambda _: to_owner, alike=True)
        gather = Phase("copy", 1, lambda _: to_all, alike=True)
        by_op = {
            "reduce_scatter": (scatter,),
            "all_gather": (gather,),
            "all_reduce": (scatter, gather),
            "all_to_all": (Phase("exchange", 1, lambda _: to_owner, alike=True),),
            "broadcast": (Phase("copy", 1, lambda _: from_root, alike=True),),
        }
        return by_op[op]

    def sent(self, op: str, payload_bytes: int, members: int, root: int = 0) -> tuple[int, ...]:
        check_op(op)
        n, whole = members, payload_bytes
        if op == "broadcast":
            return tuple((n - 1) * whole if i == root else 0 for i in range(n))
        sizes = chunk_sizes(whole, n)
        scatter = tuple(whole - size for size in sizes)
        gather = tuple((n - 1) * size for size in sizes)
        if op == "all_gather":
            return gather
        if op == "all_reduce":
            return tuple(a + b for a, b in zip(scatter, gather, strict=True))
        return scatter

"""Ring plan: every member talks to its neighbour, bandwidth-optimal for long messages."""

from __future__ import annotations

from simdist.communication.plans.plan import Move, Phase, Plan, check_op, chunk_sizes, plans


@plans.register("ring")
class Ring(Plan):
    """Ring collectives as NCCL and gloo run them: n - 1 rounds of S/n bytes, twice for an all-reduce.

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

    name = "ring"

    def phases(self, op: str, members: int, root: int) -> tuple[Phase, ...]:
        check_op(op)
        n = members

        def reduce_scatter(step: int) -> tuple[Move, ...]:
            return tuple(Move(i, (i + 1) % n, ((i - 1 - step) % n,)) for i in range(n))

        def all_gather(step: int) -> tuple[Move, ...]:
            return tuple(Move(i, (i + 1) % n, ((i - step) % n,)) for i in range(n))

        def pairwise(step: int) -> tuple[Move, ...]:
            return tuple(Move(i, (i + 1 + step) % n, ((i + 1 + step) % n,)) for i in range(n))

        def chain(step: int) -> tuple[Move, ...]:
            # The member at distance d from the root forwards chunk ``step - d``, one step after it came in.
            return tuple(
                Move((root + d) % n, (root + d + 1) % n, (step - d,)) for d in range(n - 1) if 0 <= step - d < n
            )

        scatter = Phase("reduce", n - 1, reduce_scatter, alike=True)
        gather = Phase("copy", n - 1, all_gather, alike=True)
        by_op = {
            "reduce_scatter": (scatter,),
            "all_gather": (gather,),
            "all_reduce": (scatter, gather),
            "all_to_all": (Phase("exchange", n - 1, pairwise, alike=False),),
            "broadcast": (Phase("copy", 2 * (n - 1), chain, alike=False),),
        }
        return by_op[op]

    def sent(self, op: str, payload_bytes: int, members: int, root: int = 0) -> tuple[int, ...]:
        check_op(op)
        n, whole = members, payload_bytes
        if n == 1:
            return (0,)
        if op == "broadcast":
            last = (root - 1) % n
            return tuple(0 if i == last else whole for i in range(n))
        sizes = chunk_sizes(whole, n)
        scatter = tuple(whole - size for size in sizes)
        gather = tuple(whole - sizes[(i + 1) % n] for i in range(n))
        if op == "all_gather":
            return gather
        if op == "all_reduce":
            return tuple(a + b for a, b in zip(scatter, gather, strict=True))
        return scatter

"""Parameter server plan: one member collects everything and hands everything out."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from simdist.communication.plans.moves import Column, Moves, Phase, cuts
from simdist.communication.plans.plan import Plan, check_op, collectives


@collectives.register("parameter_server")
class ParameterServer(Plan):
    """A star of members: the root (member 0, but for broadcasts) is the server, all else goes to it and comes back.

    Sent, with c_j the size of chunk j and s the server:

    ============== ================== ============================== ======
    operation      by another, i      by the server                  rounds
    ============== ================== ============================== ======
    all_reduce     S                  (n - 1) S                      2
    reduce_scatter S                  S - c_s                        2
    all_gather     c_i                (n - 2) S + c_s                2
    all_to_all     S - c_i            (n - 1) (S - c_s)              2
    broadcast      0                  (n - 1) S                      1
    ============== ================== ============================== ======

    Nobody is sent bytes of its own; the server is a member like the others and has a payload too (Li et al. 2014,
    "Scaling distributed machine learning with the parameter server", with the server on a worker's host).
    """

    name: ClassVar[str] = "parameter_server"

    def phases(self, op: str, payload_bytes: int, members: int, root: int) -> tuple[Phase, ...]:
        check_op(op)
        cut = cuts(payload_bytes, members)
        others = np.flatnonzero(np.arange(members) != root)
        server, nothing = np.full_like(others, root), np.zeros_like(others)
        low, high = cut[others], cut[others + 1]
        whole = Phase(1, lambda _: Moves(server, others, nothing, nothing + payload_bytes))
        own = Phase(1, lambda _: Moves(server, others, low, high))
        if op == "all_gather":
            collect = Phase(1, lambda _: Moves(others, server, low, high))
            return (collect, Phase(1, lambda _: _all_but(server, others, nothing, low, high, payload_bytes)))
        if op == "all_to_all":
            buffer = others * payload_bytes
            collect = Phase(1, lambda _: _all_but(others, server, buffer, low, high, payload_bytes))
            return (collect, Phase(1, lambda _: _relayed(root, others, cut)))
        by_op = {
            "all_reduce": (whole.mirrored(), whole),
            "reduce_scatter": (whole.mirrored(), own),
            "broadcast": (whole,),
        }
        return by_op[op]

    def sent(self, op: str, payload_bytes: int, members: int, root: int = 0) -> tuple[int, ...]:
        check_op(op)
        own = np.diff(cuts(payload_bytes, members))
        whole = np.full_like(own, payload_bytes)
        by_op = {
            "all_reduce": (whole, (members - 1) * payload_bytes),
            "reduce_scatter": (whole, payload_bytes - own[root]),
            "all_gather": (own, (members - 2) * payload_bytes + own[root]),
            "all_to_all": (payload_bytes - own, (members - 1) * (payload_bytes - own[root])),
            "broadcast": (0 * own, (members - 1) * payload_bytes),
        }
        sent, by_server = by_op[op]
        sent[root] = by_server if members > 1 else 0
        return tuple(sent.tolist())


def _all_but(source: Column, target: Column, base: Column, low: Column, high: Column, payload_bytes: int) -> Moves:
    """Send whole buffers but for the bytes from ``low`` to ``high``, in two pieces."""
    start, stop = np.stack([base, base + high], 1), np.stack([base + low, base + payload_bytes], 1)
    return Moves(np.repeat(source, 2), np.repeat(target, 2), start.ravel(), stop.ravel())


def _relayed(server: int, others: Column, cut: Column) -> Moves:
    """Send each member its part of the buffer of every other member."""
    members = len(cut) - 1
    target, origin = (grid.ravel() for grid in np.meshgrid(others, np.arange(members), indexing="ij"))
    buffer = origin * cut[-1]
    relayed = Moves(np.full_like(target, server), target, buffer + cut[target], buffer + cut[target + 1])
    return relayed.where(target != origin)

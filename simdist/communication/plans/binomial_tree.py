"""Binomial tree plan: whole messages up and down one tree, for short broadcasts and reductions."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from simdist.communication.plans.moves import Phase, cuts
from simdist.communication.plans.plan import Plan, check_op, collectives
from simdist.communication.plans.steps import (
    binomial_broadcast,
    binomial_scatter,
    child_counts,
    from_root,
    pairwise_exchange,
    subtree_ends,
)


@collectives.register("binomial_tree")
class BinomialTree(Plan):
    """One tree from the root (member 0, but for broadcasts): everything up, then everything down, whole messages.

    Sent by the member at distance d from the root, with k its children in the tree and t the chunks of its subtree
    (itself and those below it):

    ============== ================================================================= =================
    operation      bytes sent                                                        rounds
    ============== ================================================================= =================
    broadcast      k S                                                               log2 n
    all_reduce     S (but for the root) + k S: reduce and broadcast                  2 log2 n
    reduce_scatter S (but for the root) + t without its own: reduce and scatter      2 log2 n
    all_gather     t (but for the root) + k S: gather and broadcast                  2 log2 n
    all_to_all     pairwise, as ``ring``                                             n - 1
    ============== ================================================================= =================

    with log2 n rounded up. The farthest half is reached first, as in MPICH (src/mpi/coll/bcast/bcast_intra_binomial.c).
    """

    name: ClassVar[str] = "binomial_tree"

    def phases(self, op: str, payload_bytes: int, members: int, root: int) -> tuple[Phase, ...]:
        check_op(op)
        cut = cuts(payload_bytes, members)
        if op == "all_to_all":
            return (pairwise_exchange(payload_bytes, cut),)
        if op == "broadcast":
            return (binomial_broadcast(from_root(members, root), payload_bytes),)
        who = np.arange(members)
        spread, scatter = binomial_broadcast(who, payload_bytes), binomial_scatter(who, cut)
        by_op = {
            "all_reduce": (spread.mirrored(), spread),
            "reduce_scatter": (spread.mirrored(), scatter),
            "all_gather": (_gathered(scatter), spread),
        }
        return by_op[op]

    def sent(self, op: str, payload_bytes: int, members: int, root: int = 0) -> tuple[int, ...]:
        check_op(op)
        cut, children = cuts(payload_bytes, members), child_counts(members)
        if op == "all_to_all":
            return tuple((payload_bytes - np.diff(cut)).tolist())
        if op == "broadcast":
            return tuple((np.roll(children, root) * payload_bytes).tolist())
        below_root = np.arange(members) > 0
        end = cut[subtree_ends(members)]
        by_op = {
            "all_reduce": below_root * payload_bytes + children * payload_bytes,
            "reduce_scatter": below_root * payload_bytes + end - cut[1:],
            "all_gather": below_root * (end - cut[:-1]) + children * payload_bytes,
        }
        return tuple(by_op[op].tolist())


def _gathered(scatter: Phase) -> Phase:
    """Return the scatter run backwards, in which nothing is added: every piece has one owner."""
    backwards = scatter.mirrored()
    return Phase(backwards.steps, lambda step: backwards.moves(step)._replace(adds=False))

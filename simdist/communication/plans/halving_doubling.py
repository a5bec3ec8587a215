"""Halving-doubling plan (Rabenseifner): the ring's bytes in a logarithmic number of rounds."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from simdist.communication.plans.hypercube import Folding, bit_reversed, doubling, doubling_sent, halving
from simdist.communication.plans.moves import Column, Moves, Phase, cuts
from simdist.communication.plans.plan import Plan, check_op, collectives
from simdist.communication.plans.steps import binomial_scatter, from_root, pairwise_exchange, subtree_ends


@collectives.register("halving_doubling")
class HalvingDoubling(Plan):
    """Recursive halving and doubling: the ring's bytes in log2 n rounds each way, if n is a power of two.

    Otherwise n is folded to the power of two m below it: each even member 2k of the first n - m pairs hands its whole
    payload to 2k + 1, which stands in for it, and gets the result back (MPICH's way; it costs 2 S by a pair). Sent by a
    member of the core of m, with w the bytes of the windows that it passes in doubling (S (m - 1)/m if m divides S):

    ============== ====================== ============================ ===================
    operation      by the core            in addition, by a pair       rounds
    ============== ====================== ============================ ===================
    all_reduce     S - its block + w      S by the even, S by the odd  2 log2 m (+ 2)
    reduce_scatter S - its block          S by the even, c by the odd  log2 m (+ 1)
    all_gather     w                      c by the even, S - c back    log2 m (+ 1)
    all_to_all     pairwise, as ``ring``                               n - 1
    broadcast      its subtree + w        S by the core, n - m times   2 log2 m (+ 1)
    ============== ====================== ============================ ===================

    with c the even member's chunk; a block is one of m parts of S in an all-reduce, or the chunks of the members that a
    core member stands for. The broadcast is a binomial scatter and a doubling all-gather among the m members nearest
    to the root (van de Geijn), who hand it on to the others. In an all-reduce the largest halves go to the nearest
    partners (MPICH's allreduce_intra_reduce_scatter_allgather.c), in a reduce-scatter to the farthest, so that
    everybody ends with the right chunk.
    """

    name: ClassVar[str] = "halving_doubling"

    def phases(self, op: str, payload_bytes: int, members: int, root: int) -> tuple[Phase, ...]:
        check_op(op)
        cut = cuts(payload_bytes, members)
        if op == "all_to_all":
            return (pairwise_exchange(payload_bytes, cut),)
        if op == "broadcast":
            return _broadcast(from_root(members, root), payload_bytes)
        folding = Folding.of(members)
        core = folding.core
        if op == "all_reduce":
            block, who = cuts(payload_bytes, len(core)), core[bit_reversed(len(core))]
            fold, unfold = folding.fold(payload_bytes), folding.unfold(payload_bytes)
            return (*fold, halving(who, block), doubling(who, block), *unfold)
        block = cut[np.append(folding.first, members)]
        even, odd = folding.even, folding.odd
        if op == "reduce_scatter":
            return (*folding.fold(payload_bytes), halving(core, block), *_once(odd, even, cut[even], cut[odd]))
        start, stop = np.stack([0 * even, cut[odd]], 1), np.stack([cut[even], 0 * even + payload_bytes], 1)
        all_but_own = _once(np.repeat(odd, 2), np.repeat(even, 2), start.ravel(), stop.ravel())
        return (*_once(even, odd, cut[even], cut[odd]), doubling(core, block), *all_but_own)

    def sent(self, op: str, payload_bytes: int, members: int, root: int = 0) -> tuple[int, ...]:
        check_op(op)
        cut = cuts(payload_bytes, members)
        own = np.diff(cut)
        if op == "all_to_all":
            return tuple((payload_bytes - own).tolist())
        folding = Folding.of(members)
        core, even, odd = folding.core, folding.even, folding.odd
        sent = np.zeros(members, dtype=np.int64)
        if op == "broadcast":
            m = len(core)
            block = cuts(payload_bytes, m)
            sent[:m] = block[subtree_ends(m)] - block[1:] + doubling_sent(block)
            sent[: members - m] += payload_bytes
            return tuple(np.roll(sent, root).tolist())
        if op == "all_reduce":
            block, who = cuts(payload_bytes, len(core)), core[bit_reversed(len(core))]
            sent[who] = payload_bytes - np.diff(block) + doubling_sent(block)
            sent[even] += payload_bytes
            sent[odd] += payload_bytes
            return tuple(sent.tolist())
        block = cut[np.append(folding.first, members)]
        if op == "reduce_scatter":
            sent[core] = payload_bytes - np.diff(block)
            sent[even] += payload_bytes
            sent[odd] += own[even]
        else:
            sent[core] = doubling_sent(block)
            sent[even] += own[even]
            sent[odd] += payload_bytes - own[even]
        return tuple(sent.tolist())


def _broadcast(who: Column, payload_bytes: int) -> tuple[Phase, ...]:
    core = who[: 1 << (len(who).bit_length() - 1)]
    late = who[len(core) :]
    block = cuts(payload_bytes, len(core))
    nothing = np.zeros_like(late)
    hand_on = _once(core[: len(late)], late, nothing, nothing + payload_bytes)
    return (binomial_scatter(core, block), doubling(core, block), *hand_on)


def _once(source: Column, target: Column, start: Column, stop: Column) -> tuple[Phase, ...]:
    """Return one step, if there is anything to send."""
    return (Phase(1, lambda _: Moves(source, target, start, stop)),) if len(source) else ()

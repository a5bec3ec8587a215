"""Profile ``gloo``: what PyTorch's ProcessGroupGloo really runs, whatever the size.

Read in gloo at commit cc44198 (gloo/allreduce.cc, allgather.cc, broadcast.cc, alltoall.cc) and in PyTorch's
torch/csrc/distributed/c10d/ProcessGroupGloo.cpp.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np

from simdist.communication.plans.direct import Direct
from simdist.communication.plans.moves import Column, Moves, Phase, cuts
from simdist.communication.plans.plan import Collectives, GroupShape, Plan, check_op, collectives
from simdist.communication.plans.ring import Ring
from simdist.communication.plans.steps import from_root, ring_all_gather, ring_reduce_scatter, tree_depth

#: bytes of the numbers that gloo's chunks are rounded to: it knows their type, we take float32
_NUMBER = 4
#: gloo/allreduce.h, kMaxSegmentSize
_LONGEST_SEGMENT = 1024 * 1024


class GlooRing(Plan):
    """gloo's ring: down the ring (i to i - 1), whole segments for all but the last members, no empty messages.

    A reduce-scatter is a whole all-reduce of which each member keeps its chunk: ``reduce_scatter_tensor`` of
    ProcessGroupGloo clones the input and calls ``allreduce``. So it sends 2 (n - 1)/n S, twice the necessary bytes.

    ============== ================================= =============
    operation      bytes sent by member i            rounds
    ============== ================================= =============
    all_reduce     2 S - g_(i) - g_(i-1)             2 + 2 (n - 1)
    reduce_scatter the same                          2 + 2 (n - 1)
    all_gather     as ``ring``                       1 + n - 1
    others         as ``ring``                       as ``ring``
    ============== ================================= =============

    with g_j gloo's chunks: 2 or more segments of equal length, rounded up to whole numbers, the last ones cut short.
    Two segments of a chunk are under way at a time. Each pass around the ring begins with a round of empty messages:
    data go on the wire only when the receiver has said that it is ready (``Pair::send`` and NOTIFY_RECV_READY in
    gloo/transport/tcp/pair.cc). Both were seen on real links (analysis/fidelity/real_links).
    """

    name: ClassVar[str] = "gloo_ring"

    def in_flight(self, op: str) -> int:
        return 2 if op in ("all_reduce", "reduce_scatter", "all_gather") else 1

    def phases(self, op: str, payload_bytes: int, members: int, root: int) -> tuple[Phase, ...]:
        check_op(op)
        if op == "all_gather":
            return (_ready(members, -1), *Ring().phases(op, payload_bytes, members, root))
        if op not in ("all_reduce", "reduce_scatter"):
            return Ring().phases(op, payload_bytes, members, root)
        cut = gloo_cuts(payload_bytes, members)
        who, low, high = np.arange(members), cut[:-1], cut[1:]
        return (
            _ready(members, 1),
            _spoken(ring_reduce_scatter(who, low, high, -1)),
            _ready(members, 1),
            _spoken(ring_all_gather(who, low, high, -1)),
        )

    def sent(self, op: str, payload_bytes: int, members: int, root: int = 0) -> tuple[int, ...]:
        check_op(op)
        if op not in ("all_reduce", "reduce_scatter"):
            return Ring().sent(op, payload_bytes, members, root)
        if members == 1:
            return (0,)
        size = np.diff(gloo_cuts(payload_bytes, members))
        return tuple((2 * payload_bytes - size - np.roll(size, 1)).tolist())


class GlooPair(Plan):
    """gloo's all-gather between two members, whose messages in both directions share one connection.

    Each sends its chunk in two halves. Member 1 comes a moment later, and its word that it is ready for the second half
    stands behind its own first half: so the halves cross once only, and the exchange takes three halves' time in place
    of two. (Seen on real links, 1.50 to 1.55 whenever the two start more than 0.3 ms apart; which of them is late does
    not matter.) All else: as ``gloo_ring``.
    """

    name: ClassVar[str] = "gloo_pair"

    def in_flight(self, op: str) -> int:
        return 1 if op == "all_gather" else GlooRing().in_flight(op)

    def phases(self, op: str, payload_bytes: int, members: int, root: int) -> tuple[Phase, ...]:
        check_op(op)
        if op != "all_gather" or members != 2:
            return GlooRing().phases(op, payload_bytes, members, root)
        start, end = cuts(payload_bytes, 2)[:-1], cuts(payload_bytes, 2)[1:]
        middle = (start + end) // 2
        # member 0's first half; its second half beside member 1's first; member 1's second half
        halves = (
            ([0], [1], start[:1], middle[:1]),
            ([0, 1], [1, 0], np.array([middle[0], start[1]]), np.array([end[0], middle[1]])),
            ([1], [0], middle[1:], end[1:]),
        )
        return (Phase(3, lambda step: Moves(np.array(halves[step][0]), np.array(halves[step][1]), *halves[step][2:])),)

    def sent(self, op: str, payload_bytes: int, members: int, root: int = 0) -> tuple[int, ...]:
        check_op(op)
        return GlooRing().sent(op, payload_bytes, members, root)


class GlooTree(Plan):
    """gloo's broadcast: a binomial tree, nearest first, in which every holder starts all its sends at once.

    The root sends a whole copy to each of the members at distance 1, 2, 4, ...; so on a network whose links are all
    alike, fair sharing makes the copies of one holder arrive together, and a broadcast to 2^k members takes
    k + (k - 1) + ... + 1 times S, not k times. Others than broadcasts: as ``gloo_ring``.

    A member at distance d sends S to each d + 2^j < n with 2^j > d; the rounds are the tree's generations.
    """

    name: ClassVar[str] = "gloo_tree"

    def in_flight(self, op: str) -> int:
        return GlooRing().in_flight(op)

    def phases(self, op: str, payload_bytes: int, members: int, root: int) -> tuple[Phase, ...]:
        check_op(op)
        if op != "broadcast":
            return GlooRing().phases(op, payload_bytes, members, root)

        who = from_root(members, root)
        edges = np.array([(d, child) for d in range(members) for child in _children(d, members)])
        generation = np.array([d.bit_count() for d in edges[:, 0].tolist()])

        def moves(step: int) -> Moves:
            source, target = edges[generation == step].T
            nothing = np.zeros_like(source)
            return Moves(who[source], who[target], nothing, nothing + payload_bytes)

        return (Phase(int(generation.max()) + 1, moves),)

    def sent(self, op: str, payload_bytes: int, members: int, root: int = 0) -> tuple[int, ...]:
        check_op(op)
        if op != "broadcast":
            return GlooRing().sent(op, payload_bytes, members, root)
        return tuple(len(_children((i - root) % members, members)) * payload_bytes for i in range(members))


@collectives.register("gloo")
class Gloo(Collectives):
    """What torch.distributed runs on CPUs: ring, except a tree broadcast and an all-to-all straight to everybody.

    ============== ==================================================================================
    all_reduce     ``gloo_ring`` (gloo/allreduce.cc: RING is the default algorithm)
    reduce_scatter ``gloo_ring``: a whole all-reduce
    all_gather     ``gloo_ring``, up the ring (gloo/allgather.cc); between two members ``gloo_pair``
    all_to_all     ``direct``: all sends and receives are started at once (gloo/alltoall.cc)
    broadcast      ``gloo_tree`` (gloo/broadcast.cc)
    ============== ==================================================================================
    """

    name: ClassVar[str] = "gloo"

    def choose(
        self, op: str, payload_bytes: int, group: GroupShape, root: int, seconds: Callable[[Plan], float]
    ) -> Plan:
        check_op(op)
        return GlooPair() if op == "all_gather" and group.members == 2 else _CHOICE[op]


_CHOICE: dict[str, Plan] = {
    "all_reduce": GlooRing(),
    "reduce_scatter": GlooRing(),
    "all_gather": GlooRing(),
    "all_to_all": Direct(),
    "broadcast": GlooTree(),
}


def gloo_cuts(payload_bytes: int, members: int) -> Column:
    """Return where gloo's all-reduce cuts a payload into one chunk per member (``ring`` in gloo/allreduce.cc).

    >>> gloo_cuts(1000, 3).tolist()
    [0, 336, 672, 1000]
    """
    longest = _LONGEST_SEGMENT // _NUMBER * _NUMBER
    per_member = max(-(-payload_bytes // longest), 2 * members)
    per_member = -(-per_member // members)
    segment = -(-payload_bytes // (per_member * members))
    segment = -(-segment // _NUMBER) * _NUMBER
    return np.minimum(np.arange(members + 1) * per_member * segment, payload_bytes)


def _ready(members: int, hop: int) -> Phase:
    """Let everybody tell the member ``hop`` further that it is ready to receive: a round of empty messages."""
    who, nothing = np.arange(members), np.zeros(members, dtype=np.int64)
    return Phase(1, lambda _: Moves(who, (who + hop) % members, nothing, nothing))


def _spoken(phase: Phase) -> Phase:
    """Leave out the empty messages, which gloo does not send."""

    def moves(step: int) -> Moves:
        found = phase.moves(step)
        return found.where(found.stop > found.start)

    return Phase(phase.steps, moves, phase.alike)


def _children(distance: int, members: int) -> tuple[int, ...]:
    """Return the members that a holder at a distance from the root sends to, as distances."""
    first = distance.bit_length()
    return tuple(distance + (1 << bit) for bit in range(first, tree_depth(members)) if distance + (1 << bit) < members)

"""Profile ``nccl``: ring, tree or PAT, by the cost model with which NCCL chooses.

NCCL 2.30.7 (commit 5067397): constants and formulas of src/graph/tuning.cc (``ncclTopoTuneModel``,
``ncclTopoGetAlgoTime``), pieces of src/enqueue.cc (``calcCollChunking``). An island is a node with NVLink inside and
an Intel host, what lies between islands is what NCCL calls NET. Left out: CollNet and NVLS (in-switch sums), the limits
by the number of channels, the latency that a network plugin reports, user-buffer registration and copy engines. None of
it was held against a run of NCCL.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, NamedTuple

from simdist.communication.plans.bruck import Bruck
from simdist.communication.plans.direct import Direct
from simdist.communication.plans.double_binary_tree import DoubleBinaryTree
from simdist.communication.plans.plan import Collectives, GroupShape, Plan, check_op, collectives
from simdist.communication.plans.ring import Ring
from simdist.units import Rate

#: protocols, in the order of all tables: LL, LL128, Simple
_LL128, _SIMPLE = 1, 2
#: channels, half of them for each tree; NCCL's number depends on the machine
_CHANNELS = 2
#: microseconds, per protocol (ncclTunerConstantsDefaults)
_BASE = {"tree": (6.8, 14.0, 8.4), "ring": (6.6, 14.0, 8.4), "pat": (8.0, 8.0, 8.0)}
_NVLINK = {"tree": (0.6, 1.25, 4.0), "ring": (0.6, 1.9, 3.4)}
_NET = {"tree": (5.0, 8.5, 14.0), "ring": (2.7, 4.0, 14.0)}
#: GB/s (llMaxBws): Intel hosts, two nodes and more
_LL_MOST = (39.0, 20.4)
#: microseconds that a message costs an Intel host (getNetOverhead)
_OVERHEAD = 1.0
#: what the tree reaches of its model, per protocol for 64 B, 128 B, ... to 256 MB (treeCorrectionFactor)
_TREE_REACHES = (
    "1 1 1 1 .9 .8 .7 .7 .7 .7 .6 .5 .4 .4 .5 .6 .7 .8 .9 1 1 1 1 1",
    "1 1 1 1 1 .9 .8 .8 .8 .7 .6 .6 .6 .6 .6 .6 .8 .9 .9 .9 .9 1 1 1",
    ".9 .9 .9 .9 .9 .9 .9 .8 .7 .6 .6 .5 .5 .5 .5 .6 .7 .8 .7 .7 .8 .9 .9 .9",
)
_TREE_CORRECTION = tuple(tuple(float(factor) for factor in row.split()) for row in _TREE_REACHES)
#: data bytes of a slot of each protocol's buffers (src/include/device.h, src/init.cc: buffer / 8 slots)
_SLOT = (32 * 1024, 576_000, 512 * 1024)


class _Nodes(NamedTuple):
    """A group as NCCL sees it: members on nodes, and the GB/s at which they talk."""

    members: int
    nodes: int
    rate: float

    @property
    def each(self) -> int:
        return self.members // self.nodes


@collectives.register("nccl")
class Nccl(Collectives):
    """NCCL's choices, by its own model of latency and bandwidth.

    ============== ======================================================================================
    all_reduce     ``ring`` or ``double_binary_tree``, whichever the model has faster over all protocols
    all_gather     ``ring``; with one worker per node, where the model prefers PAT: ``bruck``
    reduce_scatter the same
    all_to_all     ``direct``: sends and receives in one group (src/enqueue.cc)
    broadcast      ``ring``, a pipelined chain
    ============== ======================================================================================

    PAT (from 2.23, one GPU per node only) has the bytes and the logarithmic rounds of ``bruck``, but cuts long messages
    to fit its buffers, which is not followed here. NCCL detects the rate; here it is a setting. A group on one island
    counts as one worker per node: on most networks here that is what it is.

    Attributes:
        bandwidth: bit/s of a node's network, all NICs together.
    """

    name: ClassVar[str] = "nccl"

    bandwidth: Rate = 100e9

    def choose(
        self, op: str, payload_bytes: int, group: GroupShape, root: int, seconds: Callable[[Plan], float]
    ) -> Plan:
        check_op(op)
        if op == "all_to_all":
            return Direct()
        if op == "broadcast" or group.members == 1:
            return Ring()
        islands = len(set(group.islands))
        nodes = _Nodes(group.members, islands if islands > 1 else group.members, self.bandwidth / 8e9)
        ring = min(_ring_time(op, payload_bytes, nodes, protocol) for protocol in range(3))
        if op != "all_reduce":
            pat = _pat_time(payload_bytes, nodes) if nodes.nodes == nodes.members else math.inf
            return Bruck() if pat < ring else Ring()
        trees = [_tree_time(payload_bytes, nodes, protocol) for protocol in range(3)]
        if ring <= min(trees):
            return Ring()
        piece = _tree_piece(payload_bytes, nodes, trees.index(min(trees)))
        return DoubleBinaryTree(chunk=piece).on(group)


def _ring_time(op: str, payload_bytes: int, nodes: _Nodes, protocol: int) -> float:
    """Return NCCL's estimate in microseconds."""
    halves = 2 if op == "all_reduce" else 1
    steps, between = halves * (nodes.members - 1), halves * (nodes.nodes - 1)
    rate = (min(_LL_MOST[nodes.nodes > 2], nodes.rate * 0.5), nodes.rate * 0.92, nodes.rate)[protocol]
    within = max(_NVLINK["ring"][protocol], _OVERHEAD * (3 if protocol == _SIMPLE else 1))
    latency = _BASE["ring"][protocol] + (steps - between) * within + between * _across("ring", nodes, protocol)
    # NCCL's own correction, for a plateau in what it measured
    if protocol == _SIMPLE and op == "all_reduce" and payload_bytes // (_CHANNELS * nodes.members) >= 64:
        latency *= 1.4
    return latency + payload_bytes / (1000 * rate * nodes.members / steps)


def _tree_time(payload_bytes: int, nodes: _Nodes, protocol: int) -> float:
    rate = nodes.rate * 0.92
    rate = (min(rate / 3.8, _LL_MOST[nodes.nodes > 2]), rate * 120 / 128, rate)[protocol] / 2
    size = (payload_bytes >> 6).bit_length() - 1
    if 0 <= size < 23:
        rate *= _TREE_CORRECTION[protocol][size]
    depth = nodes.nodes.bit_length() - 1
    within = (nodes.each - 1) * _NVLINK["tree"][protocol]
    latency = _BASE["tree"][protocol] + 2 * (within + depth * _across("tree", nodes, protocol))
    return latency + payload_bytes / (1000 * rate)


def _pat_time(payload_bytes: int, nodes: _Nodes) -> float:
    depth = nodes.nodes.bit_length() - 1
    latency = _BASE["pat"][_SIMPLE] + depth * _NET["tree"][_SIMPLE] / 3.5 + nodes.members * 2.8
    return latency + payload_bytes / (1000 * nodes.rate * 0.75)


def _across(algorithm: str, nodes: _Nodes, protocol: int) -> float:
    """Return the microseconds from node to node; with one worker per node they are always the tree's."""
    return _NET["tree" if nodes.each == 1 else algorithm][protocol]


def _tree_piece(payload_bytes: int, nodes: _Nodes, protocol: int) -> int:
    """Return the bytes of a piece that one tree moves at once, over the channels that belong to it."""
    piece = _SLOT[protocol]
    if protocol == _LL128:
        steps = 1 + (nodes.nodes.bit_length() - 1) + 0.1 * nodes.each
        while payload_bytes // (_CHANNELS * piece) < steps * 64 / nodes.each and piece > 131_072:
            piece //= 2
        while payload_bytes // (_CHANNELS * piece) < steps * 16 / nodes.each and piece > 32_768:
            piece //= 2
    return piece * _CHANNELS // 2

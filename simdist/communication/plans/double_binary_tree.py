"""Double binary tree plan: two trees with half the payload each; the leaves of one are inner nodes of the other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from simdist.communication.plans.moves import Column, Flags, Moves, Phase
from simdist.communication.plans.plan import GroupShape, Plan, check_op, collectives
from simdist.communication.plans.ring import Ring
from simdist.communication.plans.steps import from_root
from simdist.units import Bytes


@collectives.register("double_binary_tree")
class DoubleBinaryTree(Plan):
    """Two complementary trees, pipelined: about the ring's bytes for an all-reduce, in rounds that grow with log2 n.

    Each half of the payload is summed up its tree and handed down again, in pieces of ``chunk``: a member sends piece k
    on one round after it is complete, and up and down overlap. With h the height of the trees and p pieces in a half:

    ============== ======================================================== ===============
    operation      bytes sent by member i                                   rounds
    ============== ======================================================== ===============
    all_reduce     per tree S/2 for its parent (but the tree's root) and    2 h + p - 1
                   S/2 for each of its children
    broadcast      S by the root, which feeds both trees of the others;     h + p
                   S/2 by these for each of their children
    others         as ``ring``, as NCCL has no trees for them
    ============== ======================================================== ===============

    The first half has the odd byte. On islands each is a chain, from its first member in the one tree and from its last
    in the other, and the trees span the chains' heads (NCCL; which member heads a chain there depends on the NICs).

    Source: Sanders, Speck & Träff 2009, "Two-tree algorithms for full bandwidth broadcast, reduction and scan"; NCCL
    2.30.7, src/graph/trees.cc (``ncclGetDtree``). The default piece is a slot of NCCL's
    buffers in its protocol Simple (4 MiB / 8); the profile ``nccl`` takes that of the protocol it chooses.

    Attributes:
        chunk: bytes of a piece.
        islands: the island of each member; filled in by :meth:`on`.
    """

    name: ClassVar[str] = "double_binary_tree"

    chunk: Bytes = 512 * 1024
    islands: tuple[int, ...] = ()

    def on(self, group: GroupShape) -> Plan:
        chains = len(set(group.islands)) < group.members and len(set(group.islands)) > 1
        return DoubleBinaryTree(chunk=self.chunk, islands=group.islands if chains else ())

    def phases(self, op: str, payload_bytes: int, members: int, root: int) -> tuple[Phase, ...]:
        check_op(op)
        if op not in ("all_reduce", "broadcast"):
            return Ring().phases(op, payload_bytes, members, root)
        edges = self._all_reduce(members) if op == "all_reduce" else _broadcast(members, root)
        return _pipelined(edges, payload_bytes, self.chunk)

    def sent(self, op: str, payload_bytes: int, members: int, root: int = 0) -> tuple[int, ...]:
        check_op(op)
        if members == 1 or op not in ("all_reduce", "broadcast"):
            return Ring().sent(op, payload_bytes, members, root)
        edges = self._all_reduce(members) if op == "all_reduce" else _broadcast(members, root)
        halves = (payload_bytes - payload_bytes // 2, payload_bytes // 2)
        sent = np.zeros(members, dtype=np.int64)
        for tree, half in enumerate(halves):
            sent += half * np.bincount(edges.source[edges.tree == tree], minlength=members)
        return tuple(sent.tolist())

    def _all_reduce(self, members: int) -> _Edges:
        assert len(self.islands) in (0, members), "a plan for another group"
        islands: dict[int, list[int]] = {}
        for member, island in enumerate(self.islands or range(members)):
            islands.setdefault(island, []).append(member)
        chains = [list(islands.values()), [chain[::-1] for chain in islands.values()]]
        found = [
            edge
            for tree, (own, parents) in enumerate(zip(chains, tree_pair(len(islands)), strict=True))
            for edge in _up_and_down(tree, _spanned(own, parents, members))
        ]
        return _Edges.of(found)


def tree_pair(count: int) -> tuple[list[int], list[int]]:
    """Return the parent of each place (-1: the root) in both trees, as NCCL's ``ncclGetDtree`` builds them.

    >>> tree_pair(4)
    ([-1, 2, 0, 2], [1, 3, 1, -1])
    """
    first = [_parent(place, count) for place in range(count)]
    if count % 2:  # moved on by one
        moved = [first[place - 1] for place in range(count)]
        return first, [-1 if up == -1 else (up + 1) % count for up in moved]
    return first, [-1 if up == -1 else count - 1 - up for up in reversed(first)]


def _parent(place: int, count: int) -> int:
    if place == 0:
        return -1
    lowest_bit = place & -place
    above = (place ^ lowest_bit) | lowest_bit << 1
    return above if above < count else place ^ lowest_bit


class _Edges(NamedTuple):
    """One move of each piece: who sends whom, how many steps after the piece sets out, up or down, in which tree."""

    source: Column
    target: Column
    delay: Column
    adds: Flags
    tree: Column

    @classmethod
    def of(cls, rows: list[tuple[int, int, int, bool, int]]) -> _Edges:
        """Build the columns; sorted, so that what one member sends another in a step is one message."""
        source, target, delay, adds, tree = np.array(sorted(rows), dtype=np.int64).T
        return cls(source, target, delay, adds.astype(bool), tree)


def _spanned(chains: Sequence[Sequence[int]], parents: Sequence[int], members: int) -> list[int]:
    """Return the parent of each member, where trees span the heads of chains."""
    parent = [-1] * members
    for chain, above in zip(chains, parents, strict=True):
        parent[chain[0]] = -1 if above == -1 else chains[above][0]
        for before, after in pairwise(chain):
            parent[after] = before
    return parent


def _up_and_down(tree: int, parent: Sequence[int]) -> list[tuple[int, int, int, bool, int]]:
    depth, height = _depths(parent), [0] * len(parent)
    for member in sorted(range(len(parent)), key=depth.__getitem__, reverse=True):
        if parent[member] >= 0:
            height[parent[member]] = max(height[parent[member]], height[member] + 1)
    edges, top = [], max(height)
    for member, above in enumerate(parent):
        if above >= 0:
            edges.append((member, above, height[member], True, tree))
            edges.append((above, member, top + depth[above], False, tree))
    return edges


def _depths(parent: Sequence[int]) -> list[int]:
    depth = [-1] * len(parent)
    for member in range(len(parent)):
        path = [member]
        while depth[path[-1]] < 0 and parent[path[-1]] >= 0:
            path.append(parent[path[-1]])
        top = max(depth[path[-1]], 0)
        for steps, one in enumerate(reversed(path)):
            depth[one] = top + steps
    return depth


def _broadcast(members: int, root: int) -> _Edges:
    who = from_root(members, root).tolist()
    others = who[1:]
    edges = []
    for tree, parent in enumerate(tree_pair(len(others))):
        depth = _depths(parent)
        for place, above in enumerate(parent):
            source = root if above == -1 else others[above]
            edges.append((source, others[place], depth[place], False, tree))
    return _Edges.of(edges)


def _pipelined(edges: _Edges, payload_bytes: int, chunk: int) -> tuple[Phase, ...]:
    """Send one piece after the other along the edges; while all are busy with whole pieces, the rounds are alike."""
    first_half = payload_bytes - payload_bytes // 2
    pieces = max(1, -(-first_half // chunk))
    ends: npt.NDArray[np.int64] = np.arange(pieces + 1) * chunk
    cut = np.stack([np.minimum(ends, first_half), first_half + np.minimum(ends, payload_bytes - first_half)])
    longest = int(edges.delay.max())
    steps = pieces + longest

    def moves(step: int) -> Moves:
        busy = (edges.delay <= step) & (step < edges.delay + pieces)
        tree, piece = edges.tree[busy], step - edges.delay[busy]
        return Moves(edges.source[busy], edges.target[busy], cut[tree, piece], cut[tree, piece + 1], edges.adds[busy])

    alike = pieces - 1 - longest
    if alike <= 0:
        return (Phase(steps, moves),)
    drain = longest + alike
    return (
        Phase(longest, moves),
        Phase(alike, lambda step: moves(longest + step), alike=True),
        Phase(steps - drain, lambda step: moves(drain + step)),
    )

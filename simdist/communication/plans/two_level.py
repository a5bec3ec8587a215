"""Two-level plan: first within islands of workers that are close to each other, then between them."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from simdist.communication.plans.moves import Column, Moves, Phase, cuts
from simdist.communication.plans.plan import GroupShape, Plan, check_op, collectives
from simdist.communication.plans.ring import Ring
from simdist.communication.plans.steps import child_counts, tree_depth


@collectives.register("two_level")
class TwoLevel(Plan):
    """Rings within islands and between them: what crosses the slow links is S/m per worker of an island of m.

    Member c, who owns chunk c, has a stand-in on every other island: the member there with the same place, modulo the
    island's size. Islands may differ in size. One island, or islands of one member, are a plain ring.

    ============== ==================================================================== =======================
    operation      steps                                                                rounds
    ============== ==================================================================== =======================
    reduce_scatter ring within islands to the stand-ins, ring of stand-ins to the owner (m - 1) + (g - 1)
    all_gather     the same backwards                                                   (g - 1) + (m - 1)
    all_reduce     both                                                                 2 (m - 1) + 2 (g - 1)
    all_to_all     to the stand-in of the receiver, then across, pairwise               (m - 1) + (g - 1)
    broadcast      scatter in the root's island, tree over islands, all-gather within   1 + log2 g + (m - 1)
    ============== ==================================================================== =======================

    with g islands, of m members at most, and log2 g rounded up. Sent by member i, with c_i its chunk, p_i the chunks
    that it stands in for (its own with them; S/m), p_(i-1) those of its predecessor on the island, and q_i those of p_i
    whose owners are on the island before its own:

    ============== ==================================================================
    reduce_scatter S - c_i, of which p_i - c_i between islands
    all_gather     S - p_(i-1) within, p_i - q_i between islands
    all_to_all     S - p_i within, m (p_i - c_i) between islands
    broadcast      S - p_(i-1) within, k p_i to k islands; the root S - p more
    ============== ==================================================================

    After the hierarchical collectives of Horovod and NCCL's rail-wise rings; all-to-all as NCCL's PXN forwards it.

    Attributes:
        islands: the island of each member; filled in by :meth:`on`.
    """

    name: ClassVar[str] = "two_level"

    islands: tuple[int, ...] = ()

    def on(self, group: GroupShape) -> Plan:
        islands = len(set(group.islands))
        return Ring() if islands in (1, group.members) else TwoLevel(islands=group.islands)

    def phases(self, op: str, payload_bytes: int, members: int, root: int) -> tuple[Phase, ...]:
        check_op(op)
        shape, cut = self._shape(members), cuts(payload_bytes, members)
        if op == "all_to_all":
            return (_exchange_within(shape, cut), _exchange_between(shape, cut))
        within = _reduce_within(shape, cut)
        if op == "broadcast":
            return (_scatter_from(root, shape, cut), _spread(root, shape, cut), within.mirrored())
        scatter = (within, _reduce_between(shape, cut))
        gather = tuple(phase.mirrored() for phase in reversed(scatter))
        return {"reduce_scatter": scatter, "all_gather": gather, "all_reduce": (*scatter, *gather)}[op]

    def sent(self, op: str, payload_bytes: int, members: int, root: int = 0) -> tuple[int, ...]:
        check_op(op)
        shape, own = self._shape(members), np.diff(cuts(payload_bytes, members))
        part = shape.stands_for @ own
        scatter = payload_bytes - own
        if op == "reduce_scatter":
            return tuple(scatter.tolist())
        if op == "all_to_all":
            return tuple((payload_bytes - part + shape.size * (part - own)).tolist())
        within = payload_bytes - part[shape.before]
        if op == "broadcast":
            sent = within + child_counts(shape.count)[(shape.island - shape.island[root]) % shape.count] * part
            sent[root] += payload_bytes - part[root]
            return tuple(sent.tolist())
        from_before = shape.island[None, :] == ((shape.island - 1) % shape.count)[:, None]
        gather = within + part - (shape.stands_for & from_before) @ own
        return tuple((gather if op == "all_gather" else scatter + gather).tolist())

    def _shape(self, members: int) -> _Shape:
        assert len(self.islands) in (0, members), "a plan for another group"
        return _Shape(self.islands or (0,) * members)


class _Shape:
    """Islands by number, in the order in which they first come.

    Attributes:
        island: the island of each member.
        place: its place among the members of its island.
        size: how many there are.
        count: number of islands.
        stand_in: [island, member]: who stands in there for a member (itself at home).
        before, after: a member's neighbours in the ring of its island.
    """

    def __init__(self, islands: tuple[int, ...]) -> None:
        numbers = {label: number for number, label in enumerate(dict.fromkeys(islands))}
        self.members = len(islands)
        self.island = np.array([numbers[label] for label in islands])
        self.count = len(numbers)
        found = [np.flatnonzero(self.island == number) for number in range(self.count)]
        self.place = np.zeros_like(self.island)
        for one in found:
            self.place[one] = np.arange(len(one))
        self.size = np.array([len(found[number]) for number in self.island.tolist()])
        self.stand_in = np.stack([one[self.place % len(one)] for one in found])
        self.before, self.after = np.zeros_like(self.island), np.zeros_like(self.island)
        for one in found:
            self.before[one], self.after[one] = np.roll(one, 1), np.roll(one, -1)

    @cached_property
    def stands_for(self) -> npt.NDArray[np.bool_]:
        """[member, chunk]: who holds which chunks of its island's sum."""
        held: npt.NDArray[np.bool_] = self.stand_in[self.island] == np.arange(self.members)[:, None]
        return held


def _rows(source: Column, target: Column, start: Column, stop: Column, adds: bool = False) -> Moves:
    """Sort moves into messages."""
    order = np.lexsort((start, target, source))
    return Moves(source[order], target[order], start[order], stop[order], adds)


def _reduce_within(shape: _Shape, cut: Column) -> Phase:
    """Ring reduce-scatter on every island: each member ends with the island's sum of the chunks it stands in for."""
    size = shape.size[:, None]
    when = (shape.place[:, None] - 1 - shape.place[None, :] % size) % size
    when[when == size - 1] = -1  # its own, which it keeps

    def moves(step: int) -> Moves:
        source, chunk = np.nonzero(when == step)
        return Moves(source, shape.after[source], cut[chunk], cut[chunk + 1], adds=True)

    return Phase(int(shape.size.max()) - 1, moves)


def _reduce_between(shape: _Shape, cut: Column) -> Phase:
    """Ring over islands: the sum of chunk c goes from stand-in to stand-in and ends with its owner."""
    chunk = np.arange(shape.members)

    def moves(step: int) -> Moves:
        here, there = (shape.island + 1 + step) % shape.count, (shape.island + 2 + step) % shape.count
        return _rows(shape.stand_in[here, chunk], shape.stand_in[there, chunk], cut[:-1], cut[1:], adds=True)

    return Phase(shape.count - 1, moves)


def _scatter_from(root: int, shape: _Shape, cut: Column) -> Phase:
    """The root hands every other member of its island the chunks it stands in for."""
    target = shape.stand_in[shape.island[root]]
    chunk = np.flatnonzero(target != root)

    def moves(step: int) -> Moves:
        return _rows(np.full_like(chunk, root), target[chunk], cut[chunk], cut[chunk + 1])

    return Phase(1 if len(chunk) else 0, moves)


def _spread(root: int, shape: _Shape, cut: Column) -> Phase:
    """Binomial tree over islands from the root's: each stand-in hands on its chunks."""
    chunk = np.arange(shape.members)

    def moves(step: int) -> Moves:
        reach = 1 << (tree_depth(shape.count) - 1 - step)
        here = np.arange(0, shape.count - reach, 2 * reach)
        source, target = (shape.stand_in[(place + shape.island[root]) % shape.count] for place in (here, here + reach))
        parts = np.tile(chunk, len(here))
        return _rows(source.ravel(), target.ravel(), cut[parts], cut[parts + 1])

    return Phase(tree_depth(shape.count), moves)


def _exchange_within(shape: _Shape, cut: Column) -> Phase:
    """Every member hands its part for member d to d's stand-in on its island, pairwise."""
    origin, goal = (grid.ravel() for grid in np.indices((shape.members, shape.members)))
    carrier = shape.stand_in[shape.island[origin], goal]
    when = (shape.place[carrier] - shape.place[origin]) % shape.size[origin] - 1

    def moves(step: int) -> Moves:
        now = when == step
        start = origin[now] * cut[-1] + cut[goal[now]]
        return _rows(origin[now], carrier[now], start, start + cut[goal[now] + 1] - cut[goal[now]])

    return Phase(int(shape.size.max()) - 1, moves)


def _exchange_between(shape: _Shape, cut: Column) -> Phase:
    """The stand-ins hand over what their islands have for the member that they stand in for, island by island."""
    origin, goal = (grid.ravel() for grid in np.indices((shape.members, shape.members)))
    carrier = shape.stand_in[shape.island[origin], goal]
    when = (shape.island[goal] - shape.island[origin]) % shape.count - 1

    def moves(step: int) -> Moves:
        now = when == step
        start = origin[now] * cut[-1] + cut[goal[now]]
        return _rows(carrier[now], goal[now], start, start + cut[goal[now] + 1] - cut[goal[now]])

    return Phase(shape.count - 1, moves)

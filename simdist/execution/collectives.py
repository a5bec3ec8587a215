"""The values of one collective for the workers of a block, exchanging partial results with the other blocks.

Each class handles one kind of request in two phases: at construction it encodes what the local workers contribute and
says what must go to (and come from) every other block; :meth:`Part.answers` then computes what each local worker
receives. Sums follow the pairwise tree over the whole group, so that the split into blocks never shows in the bits.
Nor may it show in the layout of an answer, since kernels round differently on other strides or alignments: all that
arrives is dense and begins at its own storage's start, whether or not it crossed blocks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from simdist.codecs import Payload, payload_bytes
from simdist.communication.semantics import Node, chunk, cover, join, pairwise_sum
from simdist.communication.trace import CollectiveOp
from simdist.errors import ProgramError
from simdist.execution.coding import Coder, Members
from simdist.execution.exchange import Like
from simdist.execution.wiring import words
from simdist.program import MeshShape
from simdist.program.requests import AllGather, AllToAll, Broadcast, Collective, Reduce, ReduceScatter


class Group:
    """One group of an axis as a block sees it: which members are local, and which are where else."""

    def __init__(self, members: range, local: range, blocks: Sequence[range], me: int) -> None:
        self.size = len(members)
        self.local = places(members, local)
        #: member places held by every other block that has any, in block order
        self.others = {b: here for b, block in enumerate(blocks) if b != me and len(here := places(members, block))}


def places(members: range, block: range) -> range:
    """Return the member indices of a group that lie in a contiguous block of workers.

    >>> places(range(1, 8, 4), range(4, 8))
    range(1, 2)
    """
    inside = [i for i, worker in enumerate(members) if worker in block]
    return range(inside[0], inside[-1] + 1) if inside else range(0)


class Part(ABC):
    """One item of a wave: the same collective asked by every local worker."""

    def __init__(
        self,
        requests: Sequence[Any],
        local: range,
        groups: Sequence[Group],
        by: Callable[[int, int], int],
        coder: Coder,
    ) -> None:
        self.requests = requests
        #: position of a group's member among the local workers
        self.by = by
        self.first: Any = requests[0]
        self.groups = groups
        self.coder = coder
        self.dtype: torch.dtype = self.first.tensor.dtype
        self.outgoing: dict[int, list[Tensor]] = defaultdict(list)
        self.incoming: dict[int, list[Like]] = defaultdict(list)
        self.ops: tuple[CollectiveOp, ...] = ()
        shape = self.first.tensor.shape
        for position, request in enumerate(requests):
            if request.tensor.shape != shape or request.tensor.dtype != self.dtype:
                raise ProgramError(
                    f"worker {local[0]} asked for {words(self.first)} but worker {local[position]} for "
                    f"{words(request)}; expected equal shapes and dtypes: pad uneven shards"
                )
        self.prepare()

    def book(self, size: int) -> None:
        """Note the descriptors of what travels: a full message of ``size`` bytes."""
        self.ops = self.coder.ops(size)

    def tensor(self, number: int, place: int) -> Tensor:
        """Return what a local member of a group hands in."""
        x: Tensor = self.requests[self.by(number, place)].tensor
        return x.contiguous()

    def encoded(self, number: int, place: int) -> Payload:
        """Return what a local member of a group puts on the wire."""
        return self.coder.encode(self.tensor(number, place), Members([place]))

    def decoded(self, payload: Payload, place: int) -> Tensor:
        """Return what the receivers get of member ``place``'s payload."""
        return self.coder.decode(payload, self.first.tensor.shape, self.dtype, Members([place]))

    @abstractmethod
    def prepare(self) -> None:
        """Encode the local contributions, book them, and list what goes to and comes from the other blocks."""

    @abstractmethod
    def answers(self, arrived: dict[int, Iterator[Tensor]]) -> list[Tensor]:
        """Return what each local worker receives; ``arrived`` yields the other blocks' tensors in order."""


class ReducePart(Part):
    """All-reduce: contributions are encoded and summed, and the sum is encoded again to travel back."""

    def prepare(self) -> None:
        self.partial: list[dict[Node, Tensor]] = []
        for number, group in enumerate(self.groups):
            values = []
            for place in group.local:
                value, size = self.coder.contribution(self.tensor(number, place), Members([place]))
                self.book(size)
                values.append(value)
            start = group.local[0]
            nodes = cover(0, group.size, start, group.local[-1] + 1)
            partial = {(a, b): pairwise_sum(values[a - start : b - start]) for a, b in nodes}
            self.partial.append(partial)
            for block, theirs in group.others.items():
                self.outgoing[block] += [self.portion(partial[node], theirs, group.size) for node in nodes]
                mine = Like.of(self.portion(values[0], group.local, group.size))
                self.incoming[block] += [mine] * len(cover(0, group.size, theirs[0], theirs[-1] + 1))

    def portion(self, x: Tensor, wanted: range, size: int) -> Tensor:
        """Return the part of a partial sum that members ``wanted`` need: for an all-reduce, all of it."""
        return x

    def deliver(self, total: Tensor, group: Group) -> list[Tensor]:
        """Return what each local member receives of the sum."""
        return [self.coder.total(total, lead=0)] * len(group.local)

    def answers(self, arrived: dict[int, Iterator[Tensor]]) -> list[Tensor]:
        result: list[Any] = [None] * len(self.requests)
        for number, group in enumerate(self.groups):
            partial = self.partial[number]
            if group.others:
                partial = {node: self.portion(x, group.local, group.size) for node, x in partial.items()}
                for block, theirs in group.others.items():
                    for node in cover(0, group.size, theirs[0], theirs[-1] + 1):
                        partial[node] = next(arrived[block])
            # a format in which sums are taken ends here: what follows is the run's own arithmetic
            total = join(0, group.size, partial).to(self.dtype)
            if self.first.mean:
                total = total / group.size
            for place, x in zip(group.local, self.deliver(total, group), strict=True):
                result[self.by(number, place)] = x
        return result


class ReduceScatterPart(ReducePart):
    """Reduce-scatter: as the all-reduce, but each member needs, and gets, only its chunk, in full precision."""

    def portion(self, x: Tensor, wanted: range, size: int) -> Tensor:
        dim = self.first.dim
        each = chunk(x, dim, 0, size).shape[dim]
        return x.narrow(dim, wanted[0] * each, len(wanted) * each)

    def deliver(self, total: Tensor, group: Group) -> list[Tensor]:
        # the total covers all members of a group that is wholly local, else just the local members' chunks
        return [_dense(chunk(total, self.first.dim, i, len(group.local))) for i in range(len(group.local))]


class AllGatherPart(Part):
    """All-gather: every member's encoded shard goes to everybody; all members share one result."""

    def prepare(self) -> None:
        self.payloads: list[dict[int, Payload]] = []
        for number, group in enumerate(self.groups):
            payloads = {place: self.encoded(number, place) for place in group.local}
            self.payloads.append(payloads)
            sample = payloads[group.local[0]]
            self.book(payload_bytes(sample) * group.size)
            for block, theirs in group.others.items():
                self.outgoing[block] += [part for payload in payloads.values() for part in payload]
                self.incoming[block] += [Like.of(part) for part in sample] * len(theirs)

    def answers(self, arrived: dict[int, Iterator[Tensor]]) -> list[Tensor]:
        result: list[Any] = [None] * len(self.requests)
        for number, group in enumerate(self.groups):
            payloads = self.payloads[number]
            parts = len(payloads[group.local[0]])
            for block, theirs in group.others.items():
                for place in theirs:
                    payloads[place] = tuple(next(arrived[block]) for _ in range(parts))
            values = [self.decoded(payloads[place], place) for place in range(group.size)]
            whole = torch.cat(values, self.first.dim)
            for place in group.local:
                result[self.by(number, place)] = whole
        return result


class AllToAllPart(Part):
    """All-to-all: chunk j of every member's buffer, encoded by itself, goes to member j."""

    def prepare(self) -> None:
        #: per group: payload by (source place, destination place)
        self.payloads: list[dict[tuple[int, int], Payload]] = []
        for number, group in enumerate(self.groups):
            payloads: dict[tuple[int, int], Payload] = {}
            for source in group.local:
                cut = self.coder.slices(self.requests[self.by(number, source)].tensor, 0).contiguous()
                self.slice = cut.shape[1:]
                encoded = self.coder.encode(cut, Members([source]), slices=1)
                for target in range(group.size):
                    payloads[source, target] = tuple(part[target].clone() for part in encoded)
            self.payloads.append(payloads)
            sample = payloads[group.local[0], 0]
            self.book(payload_bytes(sample) * group.size)
            for block, theirs in group.others.items():
                for source in group.local:
                    for target in theirs:
                        self.outgoing[block] += list(payloads[source, target])
                self.incoming[block] += [Like.of(part) for part in sample] * (len(theirs) * len(group.local))

    def answers(self, arrived: dict[int, Iterator[Tensor]]) -> list[Tensor]:
        result: list[Any] = [None] * len(self.requests)
        for number, group in enumerate(self.groups):
            payloads = self.payloads[number]
            parts = len(payloads[group.local[0], 0])
            for block, theirs in group.others.items():
                for source in theirs:
                    for target in group.local:
                        payloads[source, target] = tuple(next(arrived[block]) for _ in range(parts))
            for target in group.local:
                values = [self.unsliced(payloads[source, target], source, target) for source in range(group.size)]
                result[self.by(number, target)] = torch.cat(values, self.first.concat_dim)
        return result

    def unsliced(self, payload: Payload, source: int, target: int) -> Tensor:
        """Return what member ``target`` gets of the slice that ``source`` encoded for it."""
        return self.coder.decode(payload, self.slice, self.dtype, Members([source]), slice_of=target)


class BroadcastPart(Part):
    """Broadcast: the root's encoded tensor goes to everybody; the root itself works with what the others get."""

    def prepare(self) -> None:
        root = self.first.root
        self.payloads: list[Payload] = []
        for number, group in enumerate(self.groups):
            mine = root if root in group.local else group.local[0]
            payload = self.encoded(number, mine)
            self.payloads.append(payload)
            self.book(payload_bytes(payload))
            for block, theirs in group.others.items():
                if root in group.local:
                    self.outgoing[block] += list(payload)
                elif root in theirs:
                    self.incoming[block] += [Like.of(part) for part in payload]

    def answers(self, arrived: dict[int, Iterator[Tensor]]) -> list[Tensor]:
        result: list[Any] = [None] * len(self.requests)
        for number, group in enumerate(self.groups):
            payload = self.payloads[number]
            for block, theirs in group.others.items():
                if self.first.root in theirs:
                    payload = tuple(next(arrived[block]) for _ in payload)
            x = _dense(self.decoded(payload, self.first.root))
            for place in group.local:
                result[self.by(number, place)] = x
        return result


def _dense(x: Tensor) -> Tensor:
    """Return a copy in a storage of its own."""
    return x.clone(memory_format=torch.contiguous_format)


PARTS: dict[type, Any] = {
    Reduce: ReducePart,
    ReduceScatter: ReduceScatterPart,
    AllGather: AllGatherPart,
    AllToAll: AllToAllPart,
    Broadcast: BroadcastPart,
}


class Groups:
    """The groups of every axis, as a block that holds the workers ``local`` sees them."""

    def __init__(self, mesh: MeshShape, local: range, blocks: Sequence[range], me: int) -> None:
        self.mesh = mesh
        self.local = local
        self._groups: dict[str, list[Group]] = {}
        self._by: dict[str, list[dict[int, int]]] = {}
        for axis in ("replicas", "shards", "workers"):
            # in one order everywhere, as blocks tell each other's tensors apart by their order alone
            members = sorted({mesh.group(axis, worker) for worker in local}, key=lambda group: group.start)
            self._groups[axis] = [Group(group, local, blocks, me) for group in members]
            self._by[axis] = [
                {mesh.place(axis, worker): worker - local[0] for worker in group if worker in local}
                for group in members
            ]

    def part(self, requests: Sequence[Collective], coder: Coder) -> Part:
        """Begin one collective; ``requests`` in the order of the local workers."""
        axis = requests[0].axis.name
        by = self._by[axis]
        part: Part = PARTS[type(requests[0])](
            requests, self.local, self._groups[axis], lambda number, place: by[number][place], coder
        )
        return part

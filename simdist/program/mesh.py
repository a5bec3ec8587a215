"""Named axes of the worker mesh, and the collectives along them.

``replicas`` x ``shards``: DDP is R x 1, FSDP is 1 x F, HSDP is R x F; worker ``w`` sits at replica ``w // F`` and
shard ``w % F``. An axis of size one answers without asking: nothing is encoded, nothing travels, nothing is booked.

Shape convention: a tensor's own dimensions come last and are always named by negative numbers. On the inline and
Ray engines there are no others. For a stacked cohort two leading dimensions (replicas, shards) stand in front, each
of the axis' size or, where all members hold the same value, of size one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from simdist.errors import ProgramError
from simdist.program.ask import ask
from simdist.program.requests import AllGather, AllToAll, Broadcast, Reduce, ReduceScatter, Wire

#: Measurements for the researcher (losses, norms) travel under this purpose: free of bytes, time and rounding.
DIAGNOSTIC = "diagnostic"


@dataclass(frozen=True)
class Label:
    """What a transfer is for: the ledger's ``purpose`` and ``tensor`` columns, and which codec it uses.

    ``wire`` names the kind of payload (``params``, ``grads``, ``factors``, ...); the scenario's
    ``wire.*`` keys say which codec encodes that kind. Payloads that a program encodes by itself are of kind ``packed``,
    with ``encoding`` saying how, for the ledger's ``codec`` column.
    """

    purpose: str = "optimizer"
    tensor: str = ""
    wire: Wire = "factors"
    encoding: str = ""

    @property
    def free(self) -> bool:
        return self.purpose == DIAGNOSTIC


@lru_cache(maxsize=4096)
def label_of(purpose: str, tensor: str, wire: Wire, encoding: str = "") -> Label:
    """Return one and the same label for all workers who ask for it: thousands of them do, some 60 times a step."""
    return Label(purpose, tensor, wire, encoding)


@dataclass(frozen=True)
class MeshShape:
    """Sizes of the mesh axes: ``replicas`` x ``shards`` workers; worker w is replica w // F, shard w % F."""

    replicas: int
    shards: int

    @property
    def workers(self) -> int:
        return self.replicas * self.shards

    @property
    def owners(self) -> int:
        """Members of the axis over which whole matrices are dealt out: shards, or replicas under plain DDP."""
        return self.shards if self.shards > 1 else self.replicas

    def group(self, axis: str, worker: int) -> range:
        """Return the workers in ``worker``'s group of an axis, in member order.

        >>> MeshShape(2, 4).group("shards", 5), MeshShape(2, 4).group("replicas", 5)
        (range(4, 8), range(1, 8, 4))
        """
        if axis == "shards":
            first = worker - worker % self.shards
            return range(first, first + self.shards)
        if axis == "replicas":
            return range(worker % self.shards, self.workers, self.shards)
        assert axis == "workers", axis
        return range(self.workers)

    def size(self, axis: str) -> int:
        """Return the number of members of each group of an axis."""
        return {"replicas": self.replicas, "shards": self.shards, "workers": self.workers}[axis]

    def place(self, axis: str, worker: int) -> int:
        """Return ``worker``'s member index within its group of an axis."""
        return {"replicas": worker // self.shards, "shards": worker % self.shards, "workers": worker}[axis]


Take = Callable[[Any, int], Any]


@dataclass(frozen=True, eq=False)
class Axis:
    """One axis of the mesh as one worker sees it.

    Attributes:
        name: ``replicas``, ``shards`` or ``workers`` (both together, in worker order).
        size: number of members.
        index: this worker's place on the axis; None for a stacked cohort, which is all members at once.
        label: default label of what travels here (see :meth:`Mesh.labelled`).
    """

    name: str
    size: int
    index: int | None
    take: Take
    label: Label = Label()

    def _label(self, part: str, wire: Wire | None) -> Label:
        own = self.label
        if not part and wire in (None, own.wire):
            return own
        return label_of(own.purpose, f"{own.tensor}:{part}" if part else own.tensor, wire or own.wire, own.encoding)

    async def sum(self, x: Any, *, part: str = "", wire: Wire | None = None) -> Any:
        """All-reduce: the pairwise-tree sum over the members; same shape as ``x``."""
        if self.size == 1:
            return x
        return await ask(Reduce(self, x, mean=False, label=self._label(part, wire)))

    async def mean(self, x: Any, *, part: str = "", wire: Wire | None = None) -> Any:
        """All-reduce and divide by the number of members; same shape as ``x``."""
        if self.size == 1:
            return x
        return await ask(self.mean_request(x, part=part, wire=wire))

    def mean_request(self, x: Any, *, part: str = "", wire: Wire | None = None) -> Reduce:
        """Return what :meth:`mean` asks for."""
        return Reduce(self, x, mean=True, label=self._label(part, wire))

    async def all_gather(self, x: Any, dim: int, *, part: str = "", wire: Wire | None = None) -> Any:
        """Concatenate all members' ``x`` along ``dim`` (negative), in member order."""
        if self.size == 1:
            return x
        return await ask(AllGather(self, x, dim=_from_end(dim), label=self._label(part, wire)))

    async def reduce_scatter(
        self, x: Any, dim: int, *, mean: bool = False, part: str = "", wire: Wire | None = None
    ) -> Any:
        """Sum (or mean) over the members, cut in ``size`` equal chunks along ``dim``; this worker's chunk."""
        if self.size == 1:
            return x
        return await ask(self.reduce_scatter_request(x, dim, mean=mean, part=part, wire=wire))

    def reduce_scatter_request(
        self, x: Any, dim: int, *, mean: bool = False, part: str = "", wire: Wire | None = None
    ) -> ReduceScatter:
        """Return what :meth:`reduce_scatter` asks for."""
        return ReduceScatter(self, x, dim=_from_end(dim), mean=mean, label=self._label(part, wire))

    async def all_to_all(
        self, x: Any, *, split_dim: int, concat_dim: int, part: str = "", wire: Wire | None = None
    ) -> Any:
        """Cut ``x`` in ``size`` equal chunks along ``split_dim``, chunk j to member j; join what arrives."""
        if self.size == 1:
            return x
        label = self._label(part, wire)
        return await ask(AllToAll(self, x, _from_end(split_dim), _from_end(concat_dim), label))

    async def broadcast(self, x: Any, root: int = 0, *, part: str = "", wire: Wire | None = None) -> Any:
        """Member ``root``'s ``x`` for everybody; all members pass a tensor of the same shape."""
        if not 0 <= root < self.size:
            raise ProgramError(f"got root {root} on axis {self.name!r}; expected a member from 0 to {self.size - 1}")
        if self.size == 1:
            return x
        return await ask(Broadcast(self, x, root, self._label(part, wire)))

    def share(self, x: Any, dim: int) -> Any:
        """This worker's chunk of a value that it already holds whole: no communication.

        ``x`` is cut in ``size`` equal chunks along ``dim`` (negative); the inverse of :meth:`all_gather`.
        """
        if self.size == 1:
            return x
        return self.take(x, _from_end(dim))

    def labelled(self, label: Label) -> Axis:
        # not by replace(), which takes longer: every worker does this some twenty times a step
        return Axis(self.name, self.size, self.index, self.take, label)


@dataclass(frozen=True, eq=False)
class Mesh:
    """The axes of the worker mesh as one worker sees them."""

    replicas: Axis
    shards: Axis
    workers: Axis

    def labelled(self, label: Label) -> Mesh:
        """Return the same mesh with every transfer labelled for the ledger."""
        return Mesh(self.replicas.labelled(label), self.shards.labelled(label), self.workers.labelled(label))

    def alone(self) -> Mesh:
        """Return a mesh of one worker: axes of size one, which answer without asking."""
        return Mesh(*(replace(axis, size=1, index=0) for axis in (self.replicas, self.shards, self.workers)))

    def measuring(self) -> Mesh:
        """Return the same mesh for measurements: nothing that travels on it costs bytes or time."""
        return self.labelled(label_of(DIAGNOSTIC, "", "statistics"))


def _from_end(dim: int) -> int:
    assert dim < 0, "dimensions are counted from the end, so that leading worker axes may stand in front"
    return dim

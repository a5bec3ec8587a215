"""How gradients reach the rules: one flat buffer per unit, and tensor by tensor where a compression is chosen.

Shards first, then replicas, as in HSDP. A parameter that no compression takes, or whose rule brings the replicas
together by itself, goes the plain way of :class:`simdist.parallelism.layout.Layout`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from simdist.compression import Compression, Link
from simdist.parallelism.layout import Layout, Piece, Values
from simdist.program import Worker, together
from simdist.program.audit import audit
from simdist.program.worker import Use

#: state of every compressed (axis, parameter)
Memories = dict[str, Any]


@dataclass(frozen=True)
class Compressions:
    """The compression of each axis of the mesh; None: gradients are averaged as usual."""

    replicas: Compression | None = None
    shards: Compression | None = None

    def on(self, axis: str) -> Compression | None:
        return {"replicas": self.replicas, "shards": self.shards}[axis]


@dataclass(frozen=True)
class Reduction:
    """The gradients' way from the workers to the rules.

    Attributes:
        layout: what is reduced.
        chosen: the compressions.
        lr: parameter name and step to the scheduled learning rate of its rule.
    """

    layout: Layout
    chosen: Compressions = field(default_factory=Compressions)
    lr: Callable[[str, int], float] = lambda name, step: 0.0

    def compressed(self, axis: str, piece: Piece) -> bool:
        """Whether a parameter's gradient is compressed on an axis."""
        method = self.chosen.on(axis)
        if method is None or self.layout.mesh.size(axis) == 1:
            return False
        rows = piece.rows * (self.layout.mesh.shards if axis == "shards" else 1)
        return method.takes((rows, *piece.shape[1:])) and (axis == "shards" or piece.synced)

    def init(self, worker: Worker, like: Values) -> Memories:
        """Return the memories before the first step.

        Args:
            like: this worker's rows of every parameter ``[..., rows, ...]``, for number format and device.
        """
        memories: Memories = {}
        for unit in self.layout.units:
            for piece in unit.pieces:
                for axis in ("shards", "replicas"):
                    if self.compressed(axis, piece):
                        link = self._link(axis, piece, worker, 0, like[piece.name])
                        memories[f"{axis}/{piece.name}"] = self._method(axis).init(link, self._zeros(link, like))
        return memories

    def _zeros(self, link: Link, like: Values) -> Tensor:
        some = like[link.name]
        shape = (link.axis.size, *link.shape) if link.scatter else link.shape
        # every worker has a gradient of its own, whatever it shares with others: a cohort needs all its worker axes
        return link.worker.ops.each(lambda _: some.new_zeros(shape))

    def use_of(self, buffer: tuple[Piece, ...], worker: Worker) -> Use:
        """Return what :meth:`reduce` will do first with a buffer; ``worker`` labelled as there."""
        by_replicas = self.layout.mesh.shards == 1 and any(self.compressed("replicas", piece) for piece in buffer)
        if by_replicas or any(self.compressed("shards", piece) for piece in buffer):
            return "own"
        return self.layout.reduction_of(buffer, worker)

    async def reduce(
        self, buffer: tuple[Piece, ...], packed: Any, memories: Memories, worker: Worker, step: int
    ) -> tuple[Values, Memories]:
        """Return this worker's rows of the mean gradients of one buffer, and the new memories.

        Args:
            packed: the buffer of :meth:`Layout.pack`, perhaps deferred.
            worker: labelled for the ledger.
        """
        if not any(self.compressed(axis, piece) for piece in buffer for axis in ("shards", "replicas")):
            return await self.layout.reduce(buffer, packed, worker), {}
        new: Memories = {}
        by_shards = [p for p in buffer if self.compressed("shards", p)]
        values: Values = {}
        plain = tuple(p for p in buffer if p not in by_shards)
        if by_shards:
            slices = self._slices(buffer, worker.ops.realize(packed))
            values |= await self._compress("shards", {p: slices[p] for p in by_shards}, memories, new, worker, step)
            if plain:
                flat = torch.cat([slices[p].flatten(-len(p.shape)) for p in plain], -1).flatten(-2)
                values |= await self.layout.scatter(plain, flat, worker)
        else:
            values |= await self.layout.scatter(plain, packed, worker)
        by_replicas = {p: values[p.name] for p in buffer if self.compressed("replicas", p)}
        if by_replicas:
            values |= await self._compress("replicas", by_replicas, memories, new, worker, step)
        rest = tuple(p for p in buffer if p.synced and p not in by_replicas)
        values |= await self.layout.average(rest, values, worker)
        return values, new

    def _slices(self, buffer: tuple[Piece, ...], flat: Tensor) -> dict[Piece, Tensor]:
        """Cut a realised buffer into ``[..., shards, rows, ...]`` per parameter."""
        chunks = flat.unflatten(-1, (self.layout.mesh.shards, -1)).split([p.size for p in buffer], -1)
        return {p: p.local(x) for p, x in zip(buffer, chunks, strict=True)}

    async def _compress(
        self,
        axis: str,
        gradients: Mapping[Piece, Tensor],
        memories: Memories,
        new: Memories,
        worker: Worker,
        step: int,
    ) -> Values:
        method = self._method(axis)
        programs = []
        for piece, x in gradients.items():
            link = self._link(axis, piece, worker, step, x)
            programs.append(method.mean(x, memories[f"{axis}/{piece.name}"], link))
        results = await together(*programs)
        values = {}
        for piece, (mean, memory) in zip(gradients, results, strict=True):
            values[piece.name] = self._without_padding(piece, mean, worker)
            new[f"{axis}/{piece.name}"] = memory
        return values

    def _real_rows(self, piece: Piece, like: Tensor) -> Tensor | None:
        """Return which rows of every shard are no padding, ``[shards, rows]``, or None if all are."""
        if piece.rows * self.layout.mesh.shards == piece.shape[0]:
            return None
        rows = torch.arange(self.layout.mesh.shards * piece.rows, device=like.device)
        real: Tensor = (rows < piece.shape[0]).unflatten(0, (self.layout.mesh.shards, piece.rows))
        return real

    def _without_padding(self, piece: Piece, mean: Tensor, worker: Worker) -> Tensor:
        """Return a mean of rows with zeros in padding rows: no codec may make numbers of nothing."""
        rows = self._real_rows(piece, mean)
        if rows is None:
            return mean
        mine = worker.mesh.shards.share(worker.ops.alike(rows), -2).squeeze(-2)
        return torch.where(mine.reshape(*mine.shape, *(1 for _ in piece.shape[1:])), mean, 0)

    def _real(self, axis: str, piece: Piece, worker: Worker, like: Tensor) -> Tensor | None:
        """Return :attr:`Link.real` for a parameter on an axis."""
        rows = self._real_rows(piece, like)
        if rows is None:
            return None
        numbers = worker.ops.alike(rows.repeat_interleave(piece.size // piece.rows, -1))
        if axis == "shards":
            return numbers
        mine: Tensor = worker.mesh.shards.share(numbers, -2).squeeze(-2)
        return mine

    def _method(self, axis: str) -> Compression:
        method = self.chosen.on(axis)
        assert method is not None
        return method

    def _link(self, axis: str, piece: Piece, worker: Worker, step: int, like: Tensor | None = None) -> Link:
        label = worker.mesh.workers.label
        named = worker.labelled(label.purpose, piece.name, "grads")
        on = named.mesh.shards if axis == "shards" else named.mesh.replicas
        lr = self.lr(piece.name, step) if step else 0.0
        real = None if like is None else self._real(axis, piece, worker, like)
        return Link(on, named, piece.name, piece.local_shape, axis == "shards", step, lr, real)

    async def audit(self, memories: Memories, worker: Worker) -> None:
        """Note norm and spread of what differs between workers on purpose; measuring costs nothing."""
        pieces = {piece.name: piece for unit in self.layout.units for piece in unit.pieces}
        for key, state in memories.items():
            axis, _, name = key.partition("/")
            link = self._link(axis, pieces[name], worker, 0)
            for part, x in self._method(axis).memory(state, link).items():
                # over replicas a worker's memory is of its rows, over shards of the whole tensor
                norm, drift = await audit(worker, x, over="workers" if link.scatter else "replicas", dims=1)
                worker.observe(matrix=name, **{f"{axis}_{part}_norm": norm, f"{axis}_{part}_drift": drift})

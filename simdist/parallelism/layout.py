"""Sharded parameters in FSDP units: gather, reduce, and the way to and from the optimizer's stacks.

As in PyTorch's FSDP2 every parameter is cut along dimension 0 in ``shards`` equal chunks, the last ones padded with
zeros, and each unit travels as one flat buffer: member f's part of it is its chunk of every parameter, one after the
other. DDP is the same with one shard, HSDP adds an all-reduce of the reduced chunks over ``replicas``. Parameters
whose rule brings replicas together by itself stay out of that all-reduce.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from simdist.errors import InputError
from simdist.optimizers.by_parameter import Assignment, stacks
from simdist.optimizers.rule import Rule
from simdist.program import MeshShape, Worker, together
from simdist.program.requests import Wire
from simdist.program.worker import Use

if TYPE_CHECKING:
    from simdist.workloads.workload import ParamSpec, Unit

Values = dict[str, Tensor]


@dataclass(frozen=True)
class Piece:
    """One parameter's place in a unit's flat buffer; ``wire``: a kind of payload of its own, which travels apart."""

    name: str
    shape: tuple[int, ...]
    rows: int
    synced: bool
    wire: Wire | None = None

    @property
    def size(self) -> int:
        """Numbers in one worker's (padded) chunk."""
        return self.rows * prod(self.shape[1:])

    @property
    def local_shape(self) -> tuple[int, ...]:
        """Shape of one worker's (padded) rows."""
        return (self.rows, *self.shape[1:])

    def chunks(self, x: Tensor, shards: int) -> Tensor:
        """Cut a full value ``[..., *shape]`` into padded chunks ``[..., shards, size]``."""
        flat = x.flatten(-len(self.shape))
        missing = shards * self.size - flat.shape[-1]
        if missing:
            flat = torch.nn.functional.pad(flat, (0, missing))
        chunks: Tensor = flat.unflatten(-1, (shards, self.size))
        return chunks

    def whole(self, chunks: Tensor) -> Tensor:
        """Join chunks ``[..., shards, size]`` to the full value ``[..., *shape]``, dropping the padding."""
        flat = chunks.flatten(-2)
        full: Tensor = flat.narrow(-1, 0, prod(self.shape)).unflatten(-1, self.shape)
        return full

    def local(self, chunk: Tensor) -> Tensor:
        """Shape one chunk ``[..., size]`` as this worker's rows ``[..., rows, *shape[1:]]``."""
        rows: Tensor = chunk.unflatten(-1, (self.rows, *self.shape[1:]))
        return rows


@dataclass(frozen=True)
class UnitLayout:
    """One FSDP unit: what travels together.

    Attributes:
        groups: what is gathered as one flat buffer: all pieces, or vectors apart.
        buffers: the flat gradient buffers of the unit. With shards there is one per group; without, there is nothing to
            scatter, and parameters that replicas sync in different ways are packed apart.
        regather: whether the unit is gathered again for the backward pass.
    """

    name: str
    pieces: tuple[Piece, ...]
    groups: tuple[tuple[Piece, ...], ...]
    buffers: tuple[tuple[Piece, ...], ...]
    forward_flops: float
    backward_flops: float
    regather: bool

    @property
    def numel(self) -> int:
        """Numbers in the unit's full parameters, without padding."""
        return sum(prod(piece.shape) for piece in self.pieces)


class Layout:
    """The parameters of a model on a mesh: units for the wire, stacks for the rules.

    Args:
        reshard_after_forward: see the scenario's mesh.
        vectors_apart: biases and norms travel as payloads of kind ``vectors``, beside those of the matrices.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        rule: Rule,
        mesh: MeshShape,
        reshard_after_forward: bool | None = None,
        vectors_apart: bool = False,
    ) -> None:
        for param in (param for unit in units for param in unit.params):
            if not param.shape:
                raise InputError(f"got the scalar parameter {param.name!r}; expected shape (1,) or more, to be sharded")
        self.mesh = mesh
        self.vectors_apart = vectors_apart
        self.assignments: tuple[Assignment, ...] = stacks(rule, [p for unit in units for p in unit.params], mesh)
        self._own_sync = {
            name: mesh.replicas > 1 and a.rule.syncs_replicas(a.stack.shape, mesh)
            for a in self.assignments
            for name in a.stack.names
        }
        self.units = tuple(self._unit(unit, reshard_after_forward) for unit in units)

    def _unit(self, unit: Unit, reshard: bool | None) -> UnitLayout:
        pieces = tuple(self._piece(param) for param in unit.params)
        groups = [tuple(p for p in pieces if p.wire == wire) for wire in (None, "vectors")]
        buffers = groups
        if self.mesh.shards == 1:
            buffers = [tuple(p for p in group if p.synced == kind) for group in groups for kind in (True, False)]
        # FSDP2's default frees every unit after its forward pass but the root, which backward needs at once
        regather = (not unit.root if reshard is None else reshard) and self.mesh.shards > 1
        return UnitLayout(
            unit.name,
            pieces,
            tuple(group for group in groups if group),
            tuple(buffer for buffer in buffers if buffer),
            unit.forward_flops,
            unit.backward_flops,
            regather,
        )

    def _piece(self, param: ParamSpec) -> Piece:
        rows = -(-param.shape[0] // self.mesh.shards)
        wire: Wire | None = "vectors" if self.vectors_apart and len(param.shape) == 1 else None
        return Piece(param.name, tuple(param.shape), rows, not self._own_sync[param.name], wire)

    def shard(self, full: Values, worker: Worker) -> list[Tensor]:
        """Return this worker's rows of every stack, ``[..., count, rows, ...]``, from full values."""
        local = {}
        for unit in self.units:
            for piece in unit.pieces:
                chunks = piece.chunks(worker.ops.alike(full[piece.name]), self.mesh.shards)
                local[piece.name] = piece.local(worker.mesh.shards.share(chunks, -2).squeeze(-2))
        return self.stack(local)

    def before_backward(self, unit: UnitLayout) -> tuple[UnitLayout, ...]:
        """Return the units that are gathered again just before the backward pass of ``unit``.

        Each is gathered for its own pass, but the root first of all: in FSDP2 backward begins and ends in it.
        """
        root, last = self.units[0], self.units[-1]
        if unit is root and root is not last:
            return ()
        wanted = (root, unit) if unit is last and root is not last else (unit,)
        return tuple(one for one in wanted if one.regather)

    def stack(self, local: Values) -> list[Tensor]:
        """Stack per-parameter chunks for the rules, with all-zero dummies at the end."""
        result = []
        for assignment in self.assignments:
            stack = assignment.stack
            values = [local[name] for name in stack.names]
            dummies = stack.count - len(values)
            values += [torch.zeros_like(values[0])] * dummies
            result.append(torch.stack(values, -len(stack.shape) - 1))
        return result

    def unstack(self, stacked: Iterable[Tensor]) -> Values:
        """Return the per-parameter chunks ``[..., rows, ...]`` of stacked ones."""
        return {
            name: x.select(-len(a.stack.shape) - 1, i)
            for a, x in zip(self.assignments, stacked, strict=True)
            for i, name in enumerate(a.stack.names)
        }

    async def gather(self, unit: UnitLayout, local: Values, worker: Worker) -> Values:
        """All-gather one unit: full values of its parameters from every shard's chunks."""
        found = await together(*(self._gather(group, local, worker) for group in unit.groups))
        return {name: x for group in found for name, x in group.items()}

    async def _gather(self, group: tuple[Piece, ...], local: Values, worker: Worker) -> Values:
        flat = torch.cat([local[p.name].flatten(-len(p.shape)) for p in group], -1)
        whole = await worker.mesh.shards.all_gather(flat, -1, wire=group[0].wire)
        chunks = whole.unflatten(-1, (self.mesh.shards, -1)).split([p.size for p in group], -1)
        return {p.name: p.whole(x) for p, x in zip(group, chunks, strict=True)}

    def pack(self, buffer: tuple[Piece, ...], gradients: Values) -> Tensor:
        """Lay full gradients out as one flat buffer, chunk by chunk of the member that it is for."""
        shards = self.mesh.shards
        return torch.cat([p.chunks(gradients[p.name], shards) for p in buffer], -1).flatten(-2)

    def reduction_of(self, buffer: tuple[Piece, ...], worker: Worker) -> Use:
        """Return what :meth:`reduce` will first ask for of a buffer."""
        mesh, wire = worker.mesh, buffer[0].wire
        if mesh.shards.size > 1:
            return mesh.shards.reduce_scatter_request(None, -1, mean=True, wire=wire)
        if mesh.replicas.size > 1 and all(piece.synced for piece in buffer):
            return mesh.replicas.mean_request(None, wire=wire)
        return "own"

    async def reduce(self, buffer: tuple[Piece, ...], packed: Any, worker: Worker) -> Values:
        """Reduce-scatter one buffer over shards, then average over replicas what no rule syncs by itself."""
        if all(piece.synced for piece in buffer):
            wire = buffer[0].wire
            flat = await worker.mesh.shards.reduce_scatter(packed, -1, mean=True, wire=wire)
            return self._cut(buffer, worker.ops.realize(await worker.mesh.replicas.mean(flat, wire=wire)))
        values = await self.scatter(buffer, packed, worker)
        return values | await self.average(tuple(p for p in buffer if p.synced), values, worker)

    async def scatter(self, buffer: tuple[Piece, ...], packed: Any, worker: Worker) -> Values:
        """Reduce-scatter one buffer over shards: the mean of this worker's rows, not averaged over replicas yet."""
        flat = await worker.mesh.shards.reduce_scatter(packed, -1, mean=True, wire=buffer[0].wire)
        return self._cut(buffer, worker.ops.realize(flat))

    async def average(self, pieces: tuple[Piece, ...], values: Values, worker: Worker) -> Values:
        """Average some parameters' rows over replicas, as one flat buffer."""
        if not pieces or self.mesh.replicas == 1:
            return {}
        flat = torch.cat([values[p.name].flatten(-len(p.shape)) for p in pieces], -1)
        return self._cut(pieces, await worker.mesh.replicas.mean(flat, wire=pieces[0].wire))

    @staticmethod
    def _cut(pieces: tuple[Piece, ...], flat: Tensor) -> Values:
        chunks = flat.split([p.size for p in pieces], -1)
        return {p.name: p.local(x) for p, x in zip(pieces, chunks, strict=True)}

"""A cohort that is one block of several: stacked workers here, more workers in other processes.

Collectives whose groups lie inside the block are done along the leading worker axes, as in
:mod:`simdist.execution.stacked`. The others are taken apart into one request per local worker, go through
:mod:`simdist.execution.collectives` like those of any block, and are stacked again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from simdist.communication.semantics import stacked_chunks
from simdist.communication.trace import CollectiveOp, ComputeOp, SleepOp, StepOps
from simdist.errors import InputError
from simdist.execution.agreement import END, Topic
from simdist.execution.coding import Coder
from simdist.execution.collectives import Groups, Part
from simdist.execution.deferred import Deferred, DeferredGradients
from simdist.execution.exchange import Exchange
from simdist.execution.lazy import Lazy
from simdist.execution.lockstep import Resolver, in_phases, swap_parts
from simdist.execution.stacked import LEAD, StackedOps, StackedResolver, refuse_share
from simdist.execution.wiring import COLLECTIVES, Wiring, describe_local
from simdist.program import Axis, Mesh, MeshShape, Worker
from simdist.program.requests import AllGather, Broadcast, Collective, Reduce, ReduceScatter, Wave
from simdist.program.worker import Loss, Params


def part_of_mesh(mesh: MeshShape, block: range) -> MeshShape:
    """Return the shape of a block's own piece of the mesh, which must be a rectangle.

    Raises:
        InputError: for a block that is neither whole replicas nor part of one.
    """
    first, last = block[0], block[-1]
    if first // mesh.shards == last // mesh.shards:
        return MeshShape(1, len(block))
    if first % mesh.shards == 0 and (last + 1) % mesh.shards == 0:
        return MeshShape(len(block) // mesh.shards, mesh.shards)
    raise InputError(
        f"engine.block: got 'stacked' with an actor for workers {first} to {last} of a {mesh.replicas} x {mesh.shards} "
        f"mesh; expected whole replicas or a part of one replica per actor: choose engine.workers_per_actor as a "
        f"multiple or a divisor of {mesh.shards} shards, or block 'inline'"
    )


@dataclass(frozen=True)
class _Crossing:
    """A collective that leaves the block, and how its answers are stacked again."""

    part: Part
    request: Collective
    lead: tuple[int, int]


class StackedBlockResolver(Resolver):
    """Values of one wave for a block whose workers are stacked."""

    def __init__(self, mesh: MeshShape, wiring: Wiring, exchange: Exchange) -> None:
        self.exchange = exchange
        self.wiring = wiring
        self.local = exchange.blocks[exchange.me]
        self.shape = part_of_mesh(mesh, self.local)
        self.inside = StackedResolver(self.shape, wiring)
        self.groups = Groups(mesh, self.local, exchange.blocks, exchange.me)

    def resolve(self, waves: Sequence[Wave]) -> tuple[list[tuple[Any, ...]], StepOps]:
        (wave,) = waves
        self.inside.step = self.step
        found: list[Any] = []
        ops: list[Sequence[CollectiveOp | ComputeOp | SleepOp]] = []
        for request in wave:
            if not isinstance(request, COLLECTIVES):
                ops.append((describe_local(request),))
                found.append(None)
                continue
            coder = self.inside.coder_for(request)
            if request.axis.size == self.shape.size(request.axis.name):
                answer, size = self.inside.collective(request, coder)
                ops.append(coder.ops(size))
                found.append(answer)
            else:
                crossing = self._leave(request, coder)
                ops.append(crossing.part.ops)
                found.append(crossing)
        parts = [answer.part for answer in found if isinstance(answer, _Crossing)]
        arrived = swap_parts(self.exchange, parts, self.topic(wave))
        answers = [self._return(a, arrived) if isinstance(a, _Crossing) else a for a in found]
        return [tuple(answers)], in_phases(ops)

    def finish(self) -> None:
        self.exchange.meet(Topic(self.step, END))

    def _leave(self, request: Collective, coder: Coder) -> _Crossing:
        x = request.tensor
        if isinstance(x, Deferred):
            if isinstance(request, (Reduce, ReduceScatter)) and x.own is None and not coder.order_shows:
                return self._leave_summed(request, x, coder)
            x = x.realize()
        if isinstance(x, Lazy):
            x = x.whole()
        requests = [replace(request, tensor=self._mine(x, i)) for i in range(len(self.local))]
        return _Crossing(self.groups.part(requests, coder), request, (x.shape[0], x.shape[1]))

    def _leave_summed(self, request: Reduce | ReduceScatter, x: Deferred, coder: Coder) -> _Crossing:
        """Hand in the sum over the local members of each group as the first one's contribution, zeros as the others'.

        Each worker's value has already been through the codec where that loses anything.
        """
        total, size = x.summed(request, self.inside.coder_for)
        r, f = total.shape[:2]
        nothing = torch.zeros_like(total[0, 0])
        requests = []
        for i in range(len(self.local)):
            row, column = divmod(i, self.shape.shards)
            requests.append(replace(request, tensor=total[row, column] if row < r and column < f else nothing))
        part = self.groups.part(requests, replace(coder, codec=None))
        part.coder = coder
        part.book(size)
        return _Crossing(part, request, (self.shape.replicas, self.shape.shards))

    def _mine(self, x: Tensor, i: int) -> Tensor:
        row, column = divmod(i, self.shape.shards)
        return x[row if x.shape[0] > 1 else 0, column if x.shape[1] > 1 else 0]

    def _return(self, crossing: _Crossing, arrived: dict[int, Iterator[Tensor]]) -> Tensor:
        answers = crossing.part.answers(arrived)
        kept = [self.shape.replicas, self.shape.shards]
        if isinstance(crossing.request, (Reduce, AllGather, Broadcast)):
            # all members of a group receive the same; other axes keep what they had
            shared = [LEAD[crossing.request.axis.name]] if crossing.request.axis.name in LEAD else [0, 1]
            kept = [1 if axis in shared or crossing.lead[axis] == 1 else kept[axis] for axis in (0, 1)]
        rows = [torch.stack([answers[r * self.shape.shards + f] for f in range(kept[1])]) for r in range(kept[0])]
        return torch.stack(rows)


class StackedBlockOps(StackedOps):
    """Local work of the workers of one block of a larger mesh."""

    def __init__(self, mesh: MeshShape, block: range, chunk: int | None) -> None:
        super().__init__(part_of_mesh(mesh, block), chunk)
        self.first = block[0]
        self.count = mesh.workers
        self.places = {axis: mesh.place(axis, self.first) for axis in ("replicas", "shards", "workers")}

    def each(self, make: Callable[[int], Tensor]) -> Tensor:
        return super().each(lambda worker: make(self.first + worker))

    def gradients(self, loss: Loss, params: Params, batch: Callable[[int], Any]) -> DeferredGradients:
        return super().gradients(loss, params, lambda worker: batch(self.first + worker))

    def evaluate(self, loss: Loss, params: Params, batches: Sequence[Any]) -> Tensor:
        mine = range(self.first, self.first + self.mesh.workers)
        share = [batch for i, batch in enumerate(batches) if i % self.count in mine]
        if not share:
            some = next(iter(params.values()))
            return torch.zeros(1, 1, dtype=some.dtype, device=some.device)
        return super().evaluate(loss, params, share) * (len(share) / len(batches))


def block_cohort(mesh: MeshShape, block: range, seed: int, chunk: int | None = None) -> Worker:
    """Return the handle that stands for all workers of one block.

    Raises:
        InputError: when the block is no rectangle of the mesh.
    """
    shape = part_of_mesh(mesh, block)

    def axis(name: str) -> Axis:
        size = mesh.size(name)
        if name == "workers":
            return Axis(name, size, None, refuse_share)
        lead, first, here = LEAD[name], mesh.place(name, block[0]), shape.size(name)

        def take(x: Any, dim: int) -> Any:
            if x.shape[lead] == 1:
                return stacked_chunks(x, dim, size, lead).narrow(lead, first, here)
            # every local member holds a value of its own and keeps its own chunk of it
            own = [
                stacked_chunks(x.narrow(lead, i, 1), dim, size, lead).narrow(lead, first + i, 1) for i in range(here)
            ]
            return torch.cat(own, lead)

        return Axis(name, size, None, take)

    axes = Mesh(axis("replicas"), axis("shards"), axis("workers"))
    return Worker(None, mesh.workers, axes, seed, StackedBlockOps(mesh, block, chunk))

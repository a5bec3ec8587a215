"""The stacked engine: one coroutine stands for a whole cohort, whose tensors carry leading worker axes.

A tensor of the cohort is ``[R or 1, F or 1, ...]``: size one where all workers along that axis hold the same value, so
that work which every worker would repeat is done once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from simdist.codecs import payload_bytes
from simdist.communication.semantics import (
    stacked_all_to_all,
    stacked_chunks,
    stacked_gather,
    stacked_sum,
)
from simdist.communication.trace import CollectiveOp, ComputeOp, SleepOp, StepOps
from simdist.errors import ProgramError
from simdist.execution.coding import Coder, Members
from simdist.execution.deferred import Deferred, DeferredGradients
from simdist.execution.lazy import Lazy
from simdist.execution.lockstep import Resolver, in_phases
from simdist.execution.wiring import COLLECTIVES, Wiring, describe_local
from simdist.execution.worker_gradients import Sizes
from simdist.program import Axis, Mesh, MeshShape, Worker
from simdist.program.requests import (
    AllGather,
    AllToAll,
    Collective,
    Reduce,
    ReduceScatter,
    Wave,
)
from simdist.program.worker import Loss, Params, WorkerOps

LEAD = {"replicas": 0, "shards": 1}


class StackedResolver(Resolver):
    """Values of collectives along the leading worker axes."""

    def __init__(self, mesh: MeshShape, wiring: Wiring) -> None:
        self.mesh = mesh
        self.wiring = wiring

    def resolve(self, waves: Sequence[Wave]) -> tuple[list[tuple[Any, ...]], StepOps]:
        (wave,) = waves
        answers: list[Any] = []
        ops: list[Sequence[CollectiveOp | ComputeOp | SleepOp]] = []
        for request in wave:
            if isinstance(request, COLLECTIVES):
                coder = self.coder_for(request)
                answer, size = self.collective(request, coder)
                ops.append(coder.ops(size))
                answers.append(answer)
            else:
                ops.append((describe_local(request),))
                answers.append(None)
        return [tuple(answers)], in_phases(ops)

    def coder_for(self, request: Collective) -> Coder:
        """Return what encodes a request in the step under way."""
        return self.wiring.coder(request, self.step)

    def collective(self, request: Collective, coder: Coder) -> tuple[Tensor, int]:
        """Return the answer and the bytes of the full message."""
        if isinstance(request.tensor, Lazy):
            return self._by_pieces(request, request.tensor, coder)
        if request.axis.name == "workers":
            return self._over_workers(request, coder)
        return self._along(LEAD[request.axis.name], request, coder)

    def _by_pieces(self, request: Collective, x: Lazy, coder: Coder) -> tuple[Tensor, int]:
        """Carry a collective out for some of its groups at a time: they have nothing to do with each other."""
        if request.axis.name == "workers":
            return self._over_workers(replace(request, tensor=x.whole()), coder)
        axis = LEAD[request.axis.name]
        found = x.by_pieces(1 - axis, lambda piece: self._along(axis, replace(request, tensor=piece), coder))
        answers = [answer for answer, _ in found]
        return answers[0] if len(answers) == 1 else torch.cat(answers, 1 - axis), found[0][1]

    def _along(self, axis: int, request: Collective, coder: Coder) -> tuple[Tensor, int]:
        """Carry a collective out over the members that a leading axis counts."""
        size = request.axis.size
        members = Members(range(size), 2, axis)
        x = request.tensor
        if isinstance(x, Deferred):
            if isinstance(request, (Reduce, ReduceScatter)) and x.own is None:
                summed, size_bytes = x.summed(request, self.coder_for)
                return self._reduced(request, summed.to(x.dtype), coder, axis), size_bytes
            x = x.realize()
        if isinstance(request, (Reduce, ReduceScatter)):
            contribution, size_bytes = coder.contribution(x, members)
            total = stacked_sum(contribution, axis) if contribution.shape[axis] > 1 else contribution * size
            return self._reduced(request, total.to(x.dtype), coder, axis), size_bytes
        if isinstance(request, AllToAll):
            cut = coder.slices(x, 2)
            payload = coder.encode(cut, members, slices=1)
            arrived = coder.decode(payload, cut.shape[3:], x.dtype, members).movedim(2, request.split_dim - 1)
            arrived = arrived.flatten(request.split_dim - 1, request.split_dim)
            answer = stacked_all_to_all(arrived, request.split_dim, request.concat_dim, size, axis)
            return answer, payload_bytes(payload, copies(payload[0]))
        payload = coder.encode(x, members)
        decoded = coder.decode(payload, x.shape[2:], x.dtype, members)
        one = payload_bytes(payload, copies(payload[0]))
        if isinstance(request, AllGather):
            return stacked_gather(decoded, request.dim, size, axis), one * size
        return decoded.narrow(axis, request.root if decoded.shape[axis] > 1 else 0, 1), one

    def _reduced(self, request: Reduce | ReduceScatter, total: Tensor, coder: Coder, axis: int) -> Tensor:
        if request.mean:
            total = total / request.axis.size
        if isinstance(request, ReduceScatter):
            return stacked_chunks(total, request.dim, request.axis.size, axis)
        return coder.total(total, lead=2)

    def _over_workers(self, request: Collective, coder: Coder) -> tuple[Tensor, int]:
        """Collectives over all workers: the two leading axes are treated as one."""
        x = request.tensor
        if isinstance(x, Deferred):
            if isinstance(request, Reduce) and x.own is None:
                summed, size = x.summed(request, self.coder_for)
                return self._reduced(request, summed.to(x.dtype), coder, 1), size
            x = x.realize()
        flat = x.expand(self.mesh.replicas, self.mesh.shards, *x.shape[2:]).flatten(0, 1).unsqueeze(0)
        inner = replace(request, tensor=flat)
        answer, size = self._along(LEAD["shards"], inner, replace(coder, request=inner))
        if answer.shape[1] > 1:
            answer = answer.unflatten(1, (self.mesh.replicas, self.mesh.shards)).squeeze(0)
        return answer, size


def copies(x: Tensor) -> int:
    """Count the workers' values that are stacked in a cohort tensor."""
    return x.shape[0] * x.shape[1]


class StackedOps(WorkerOps):
    """Local work of all workers of a cohort."""

    def __init__(self, mesh: MeshShape, chunk: int | None) -> None:
        self.mesh = mesh
        self.sizes = Sizes(chunk)
        #: where the cohort begins on each axis
        self.places = dict.fromkeys(("replicas", "shards", "workers"), 0)

    def each(self, make: Callable[[int], Tensor]) -> Tensor:
        values = torch.stack([make(worker) for worker in range(self.mesh.workers)])
        grid: Tensor = values.unflatten(0, (self.mesh.replicas, self.mesh.shards))
        return grid

    def alike(self, x: Tensor) -> Tensor:
        return x[None, None]

    def plain(self, params: Params) -> Params:
        for name, x in params.items():
            if copies(x) != 1:
                raise ProgramError(f"expected one value of {name!r} for all workers, got leading axes {x.shape[:2]}")
        return {name: x[0, 0] for name, x in params.items()}

    def own_bytes(self, x: Tensor) -> int:
        # a number without dimensions is every worker's own, such as a counter of steps
        return x.numel() // max(1, copies(x) if x.ndim >= 2 else 1) * x.element_size()

    def gradients(self, loss: Loss, params: Params, batch: Callable[[int], Any]) -> DeferredGradients:
        return DeferredGradients(self.mesh, loss, params, batch, self.sizes, self.places)

    def lazily(self, function: Callable[..., Tensor], *operands: Tensor) -> Lazy:
        return Lazy(function, operands)

    def evaluate(self, loss: Loss, params: Params, batches: Sequence[Any]) -> Tensor:
        single = self.plain(params)
        some = next(iter(single.values()))
        total = torch.zeros((), dtype=some.dtype, device=some.device)
        with torch.no_grad():
            for batch in batches:
                total = total + loss(single, batch)
        # every worker of the cohort is booked with an equal share of the mean
        return (total / len(batches) / self.mesh.workers).reshape(1, 1)

    def alone(self) -> WorkerOps:
        raise ProgramError("a stacked cohort has no single workers; run programs that need alone() on engine 'inline'")

    def realize(self, x: Any) -> Tensor:
        return x.realize() if isinstance(x, Deferred) else x


def cohort(mesh: MeshShape, seed: int, chunk: int | None = None) -> Worker:
    """Return the handle that stands for all workers of a mesh at once."""

    def axis(name: str) -> Axis:
        size = mesh.size(name)
        if name == "workers":
            return Axis(name, size, None, refuse_share)
        lead = LEAD[name]
        return Axis(name, size, None, lambda x, dim: stacked_chunks(x, dim, size, lead))

    axes = Mesh(axis("replicas"), axis("shards"), axis("workers"))
    return Worker(None, mesh.workers, axes, seed, StackedOps(mesh, chunk))


def refuse_share(x: Any, dim: int) -> Any:
    """Stand in for ``share`` on an axis that has no leading axis of its own."""
    raise ProgramError("share() works on the axes 'replicas' and 'shards'; got axis 'workers'")

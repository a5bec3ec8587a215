"""The stacked engine: one coroutine stands for a whole cohort, whose tensors carry leading worker axes.

A tensor of the cohort is ``[R or 1, F or 1, ...]``: size one where all workers along that axis hold the same value, so
that work which every worker would repeat is done once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from simdist.communication.codecs import Codec
from simdist.communication.semantics import (
    chunk_length,
    stacked_all_to_all,
    stacked_chunks,
    stacked_gather,
    stacked_sum,
)
from simdist.communication.trace import CollectiveOp, ComputeOp, SleepOp, WaveOps
from simdist.errors import ProgramError
from simdist.execution.deferred import Deferred, DeferredGradients
from simdist.execution.lockstep import Resolver
from simdist.execution.wiring import (
    COLLECTIVES,
    Wiring,
    decode,
    describe,
    describe_local,
    encode,
    payload_bytes,
    round_trip,
)
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

    def resolve(self, waves: Sequence[Wave]) -> tuple[list[tuple[Any, ...]], WaveOps]:
        (wave,) = waves
        answers: list[Any] = []
        ops: list[CollectiveOp | ComputeOp | SleepOp] = []
        for request in wave:
            if isinstance(request, COLLECTIVES):
                codec = self.wiring.codec(request.label)
                answer, size = self.collective(request, codec)
                op = describe(request, codec, size)
                if op is not None:
                    ops.append(op)
                answers.append(answer)
            else:
                ops.append(describe_local(request))
                answers.append(None)
        return [tuple(answers)], tuple(ops)

    def collective(self, request: Collective, codec: Codec | None) -> tuple[Tensor, int]:
        """Return the answer and the bytes of the full message."""
        if request.axis.name == "workers":
            return self._over_workers(request, codec)
        axis, size = LEAD[request.axis.name], request.axis.size
        x = request.tensor
        if isinstance(x, Deferred):
            if not isinstance(request, (Reduce, ReduceScatter)):
                x = x.realize()
            else:
                summed, size_bytes = x.summed(request.axis.name, codec)
                return self._reduced(request, summed, codec, axis), size_bytes
        if isinstance(request, (Reduce, ReduceScatter)):
            payload = encode(codec, x)
            contribution = decode(codec, payload, x.dtype)
            total = stacked_sum(contribution, axis) if x.shape[axis] > 1 else contribution * size
            return self._reduced(request, total, codec, axis), payload_bytes(payload, copies(x))
        if isinstance(request, AllGather):
            payload = encode(codec, x)
            answer = stacked_gather(decode(codec, payload, x.dtype), request.dim, size, axis)
            return answer, payload_bytes(payload, copies(x)) * size
        if isinstance(request, AllToAll):
            # a codec treats each destination's chunk by itself: chunks become one more stacked axis
            chunks = x.unflatten(request.split_dim, (size, chunk_length(x, request.split_dim, size)))
            chunks = chunks.movedim(request.split_dim - 1, 0)
            payload = encode(codec, chunks)
            arrived = decode(codec, payload, x.dtype).movedim(0, request.split_dim - 1)
            arrived = arrived.flatten(request.split_dim - 1, request.split_dim)
            answer = stacked_all_to_all(arrived, request.split_dim, request.concat_dim, size, axis)
            return answer, payload_bytes(payload, copies(x))
        payload = encode(codec, x)
        decoded = decode(codec, payload, x.dtype)
        root = request.root if x.shape[axis] > 1 else 0
        return decoded.narrow(axis, root, 1), payload_bytes(payload, copies(x))

    def _reduced(self, request: Reduce | ReduceScatter, total: Tensor, codec: Codec | None, axis: int) -> Tensor:
        if request.mean:
            total = total / request.axis.size
        if isinstance(request, ReduceScatter):
            return stacked_chunks(total, request.dim, request.axis.size, axis)
        return round_trip(codec, total)

    def _over_workers(self, request: Collective, codec: Codec | None) -> tuple[Tensor, int]:
        """Collectives over all workers: the two leading axes are treated as one."""
        x = request.tensor
        if isinstance(x, Deferred):
            if isinstance(request, Reduce):
                summed, size = x.summed("workers", codec)
                return self._reduced(request, summed, codec, 1), size
            x = x.realize()
        flat = x.expand(self.mesh.replicas, self.mesh.shards, *x.shape[2:]).flatten(0, 1).unsqueeze(0)
        inner = type(request)(**{**vars(request), "tensor": flat, "axis": _as_shards(request.axis)})
        answer, size = self.collective(inner, codec)
        if answer.shape[1] > 1:
            answer = answer.unflatten(1, (self.mesh.replicas, self.mesh.shards)).squeeze(0)
        return answer, size


def _as_shards(axis: Axis) -> Axis:
    return Axis("shards", axis.size, None, axis.take, axis.label)


def copies(x: Tensor) -> int:
    """Count the workers' values that are stacked in a cohort tensor."""
    return x.shape[0] * x.shape[1]


class StackedOps(WorkerOps):
    """Local work of all workers of a cohort."""

    def __init__(self, mesh: MeshShape, chunk: int | None) -> None:
        self.mesh = mesh
        self.chunk = chunk

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

    def gradients(self, loss: Loss, params: Params, batch: Callable[[int], Any]) -> DeferredGradients:
        return DeferredGradients(self.mesh, loss, params, batch, self.chunk)

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

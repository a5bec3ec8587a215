"""A run of shapes: the worker programs themselves on meta tensors, which have shapes and number formats but no values.

In lock step all workers ask for the same shapes, so that one worker stands for all of them. What its requests put on
the wire is encoded by the run's own codecs, which makes payloads without values, of the right size. Nothing is stored,
computed or drawn, and a model of any size takes as long as a small one with as many tensors.

A program that steers by values meets :func:`simdist.linalg.deciding.decide`, which says what a plan assumes. One that
reads them otherwise cannot be planned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from simdist.codecs import payload_bytes
from simdist.communication.semantics import chunk, chunk_length
from simdist.communication.trace import CollectiveOp, ComputeOp, SleepOp, StepOps
from simdist.execution.coding import Members
from simdist.execution.collectives import Groups
from simdist.execution.engine import LocalEngine
from simdist.execution.inline import SingleOps
from simdist.execution.lockstep import Resolver, in_phases
from simdist.execution.wiring import COLLECTIVES, Wiring, describe_local
from simdist.program import Axis, Mesh, MeshShape, Worker
from simdist.program.program import LockstepProgram
from simdist.program.requests import AllGather, AllToAll, Collective, ReduceScatter, Wave
from simdist.program.worker import Loss, Pack, Params, Use

META = torch.device("meta")


class ShapeGradients:
    """Gradients like the parameters, of a backward pass that nobody runs."""

    def __init__(self, params: Params) -> None:
        self._params = params

    def packed(self, pack: Pack, use: Use = None) -> Tensor:
        return pack(self._params)

    def loss(self) -> Tensor:
        return next(iter(self._params.values())).new_empty(())


class ShapeOps(SingleOps):
    """Local work of the worker that stands for all."""

    def each(self, make: Callable[[int], Tensor]) -> Tensor:
        return make(0)

    def gradients(self, loss: Loss, params: Params, batch: Callable[[int], Any]) -> ShapeGradients:
        return ShapeGradients({name: torch.empty_like(x) for name, x in params.items()})

    def evaluate(self, loss: Loss, params: Params, batches: Sequence[Any]) -> Tensor:
        return next(iter(params.values())).new_empty(())

    def alone(self) -> ShapeOps:
        return self


class ShapeResolver(Resolver):
    """Answers of the right shape, and the descriptors that the engines themselves would book."""

    def __init__(self, mesh: MeshShape, wiring: Wiring) -> None:
        self._wiring = wiring
        # the parts of a collective encode what their local members hand in, and that is all that a plan needs of them
        self._groups = Groups(mesh, range(1), [range(mesh.workers)], 0)

    def resolve(self, waves: Sequence[Wave]) -> tuple[list[tuple[Any, ...]], StepOps]:
        (wave,) = waves
        answers: list[Any] = []
        ops: list[Sequence[CollectiveOp | ComputeOp | SleepOp]] = []
        for request in wave:
            if isinstance(request, COLLECTIVES):
                ops.append(self._booked(request))
                answers.append(request.tensor.new_empty(answer_shape(request)))
            else:
                ops.append((describe_local(request),))
                answers.append(None)
        return [tuple(answers)], in_phases(ops)

    def _booked(self, request: Collective) -> Sequence[CollectiveOp]:
        coder = self._wiring.coder(request, self.step)
        if isinstance(request, AllToAll):
            # all slices at once, where the part makes a payload for each of perhaps thousands of members
            payload = coder.encode(coder.slices(request.tensor, 0), Members([0]), slices=1)
            return coder.ops(payload_bytes(payload))
        return self._groups.part([request], coder).ops


def answer_shape(request: Collective) -> tuple[int, ...]:
    """Return the shape of what every member receives.

    Raises:
        ProgramError: when a dimension does not divide into a chunk per member.
    """
    shape, size = list(request.tensor.shape), request.axis.size
    if isinstance(request, AllGather):
        shape[request.dim] *= size
    elif isinstance(request, ReduceScatter):
        shape[request.dim] = chunk_length(request.tensor, request.dim, size)
    elif isinstance(request, AllToAll):
        shape[request.split_dim] = chunk_length(request.tensor, request.split_dim, size)
        shape[request.concat_dim] *= size
    return tuple(shape)


class _NothingDrawn(TorchFunctionMode):
    """Draws from keyed streams have their shape and number format, but no numbers: 405e9 of them would take hours."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func in (torch.rand, torch.randn) and given.pop("generator", None) is not None:
            given["device"] = META
        return func(*args, **given)


@contextmanager
def nothing_drawn() -> Iterator[None]:
    """Draw nothing from keyed streams for the while: ``simdist.program.random`` and noise give meta tensors."""
    with _NothingDrawn():
        yield


def shape_worker(mesh: MeshShape, seed: int) -> Worker:
    """Return the handle of the worker that stands for all: the first one."""

    def axis(name: str) -> Axis:
        size = mesh.size(name)
        return Axis(name, size, 0, lambda x, dim: chunk(x, dim, 0, size))

    return Worker(0, mesh.workers, Mesh(axis("replicas"), axis("shards"), axis("workers")), seed, ShapeOps())


def shape_engine(program: LockstepProgram, mesh: MeshShape, wiring: Wiring, seed: int) -> LocalEngine:
    """Return the engine of a plan; run it under :func:`nothing_drawn`.

    Its steps have the descriptors of those on other engines, as long as values steer as ``decide`` assumes. Its states
    are those of one worker, on the meta device.
    """
    return LocalEngine(program, [shape_worker(mesh, seed)], ShapeResolver(mesh, wiring), None)

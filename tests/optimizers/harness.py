"""A tiny lock-step driver for update rules: plain torch semantics, and a book of what travelled.

``Coroutines`` runs one coroutine per worker, ``Cohort`` one for all of them with leading worker axes. Both offer
``run(mesh, program, seed)``; another engine joins by offering the same.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from simdist.optimizers import Assignment, MeshShape, Rule, stacks
from simdist.program import Axis, Label, Mesh, Worker
from simdist.program.random import normal
from simdist.program.requests import AllGather, AllToAll, Compute, Reduce, ReduceScatter
from simdist.program.worker import WorkerOps


@dataclass(frozen=True)
class Parameter:
    name: str
    shape: tuple[int, ...]
    role: str = "matrix"


@dataclass(frozen=True)
class Transfer:
    """One collective as one worker sees it; ``numbers`` is the full message of card 0."""

    op: str
    axis: str
    group: int
    purpose: str
    tensor: str
    wire: str
    numbers: int

    def sent(self, width: dict[str, int]) -> float:
        """Bytes that one worker sends on a ring, given bytes per number of each kind of payload."""
        rounds = 2 if self.op == "Reduce" else 1
        return rounds * (self.group - 1) / self.group * self.numbers * width[self.wire]


@dataclass
class Outcome:
    """Results (one per worker, or one for the cohort), transfers and FLOPs of one worker, its observations."""

    results: list[Any]
    transfers: list[Transfer] = field(default_factory=list)
    flops: float = 0.0
    observations: list[dict[str, Any]] = field(default_factory=list)

    def sent(self, purpose: str = "optimizer", **width: int) -> float:
        return sum(t.sent(width) for t in self.transfers if t.purpose == purpose)


@dataclass(frozen=True)
class _Ops:
    """All that update rules and this harness use of an engine's local operations."""

    each: Callable[[Callable[[int], Tensor]], Tensor]

    def lazily(self, function: Callable[..., Tensor], *operands: Tensor) -> Tensor:
        return function(*operands)


Program = Callable[[Worker], Coroutine[Any, Any, Any]]


class Driver:
    """Advances coroutines wave by wave; subclasses say what members receive."""

    name: str

    def __repr__(self) -> str:
        # test processes must agree on the names of tests, so none may hold an address
        return self.name

    def workers(self, mesh: MeshShape, seed: int) -> list[Worker]:
        raise NotImplementedError  # not abstract: a driver may override run() alone

    def answer(self, mesh: MeshShape, requests: Sequence[Any]) -> list[Any]:
        raise NotImplementedError  # see workers()

    def message(self, mesh: MeshShape, request: Any) -> int:
        raise NotImplementedError  # see workers()

    def run(self, mesh: MeshShape, program: Program, seed: int = 0) -> Outcome:
        workers = self.workers(mesh, seed)
        programs = [program(worker) for worker in workers]
        outcome, answers = Outcome([]), [None] * len(programs)
        while True:
            waves = []
            for coroutine, reply in zip(programs, answers, strict=True):
                try:
                    waves.append(coroutine.send(reply))
                except StopIteration as stop:
                    outcome.results.append(stop.value)
            if not waves:
                outcome.observations = workers[0].observations
                return outcome
            assert not outcome.results, "workers out of step"
            columns = []
            for requests in zip(*waves, strict=True):
                first = requests[0]
                assert len({type(request) for request in requests}) == 1
                if isinstance(first, Compute):
                    assert len({request.flops for request in requests}) == 1
                    outcome.flops += first.flops
                    columns.append([None] * len(requests))
                    continue
                assert len({request.label for request in requests}) == 1
                label: Label = first.label
                if not label.free:
                    outcome.transfers.append(
                        Transfer(
                            type(first).__name__,
                            first.axis.name,
                            first.axis.size,
                            label.purpose,
                            label.tensor,
                            label.wire,
                            self.message(mesh, first),
                        )
                    )
                columns.append(self.answer(mesh, requests))
            answers = [tuple(column[i] for column in columns) for i in range(len(waves))]


class Coroutines(Driver):
    """One coroutine per worker."""

    name = "inline"

    def workers(self, mesh: MeshShape, seed: int) -> list[Worker]:
        def worker(index: int) -> Worker:
            def axis(name: str) -> Axis:
                size, place = mesh.size(name), mesh.place(name, index)
                return Axis(name, size, place, lambda x, dim: _cut(x, size, dim)[place])

            axes = Mesh(axis("replicas"), axis("shards"), axis("workers"))
            return Worker(index, mesh.workers, axes, seed, cast(WorkerOps, _Ops(lambda make: make(index))))

        return [worker(index) for index in range(mesh.workers)]

    def message(self, mesh: MeshShape, request: Any) -> int:
        return request.tensor.numel() * (request.axis.size if isinstance(request, AllGather) else 1)

    def answer(self, mesh: MeshShape, requests: Sequence[Any]) -> list[Any]:
        replies: list[Any] = [None] * len(requests)
        axis = requests[0].axis
        for first in range(mesh.workers):
            if mesh.place(axis.name, first) == 0:
                group = mesh.group(axis.name, first)
                got = _collective(requests[0], [requests[member].tensor for member in group])
                for member, value in zip(group, got, strict=True):
                    replies[member] = value
        return replies


class Cohort(Driver):
    """One coroutine for all workers: ``[R or 1, F or 1, ...]``."""

    name = "stacked"

    def workers(self, mesh: MeshShape, seed: int) -> list[Worker]:
        def axis(name: str) -> Axis:
            lead = {"replicas": 0, "shards": 1, "workers": 9}[name]

            def take(x: Tensor, dim: int) -> Tensor:
                members = _members(x, lead, mesh.size(name))
                cuts = [_cut(member, len(members), dim)[i] for i, member in enumerate(members)]
                return torch.cat(cuts, dim=lead)

            return Axis(name, mesh.size(name), None, take)

        axes = Mesh(axis("replicas"), axis("shards"), axis("workers"))

        def each(make: Callable[[int], Tensor]) -> Tensor:
            rows = [torch.stack([make(r * mesh.shards + f) for f in range(mesh.shards)]) for r in range(mesh.replicas)]
            return torch.stack(rows)

        return [Worker(None, mesh.workers, axes, seed, cast(WorkerOps, _Ops(each)))]

    def message(self, mesh: MeshShape, request: Any) -> int:
        own = request.tensor[0, 0].numel()
        return own * (request.axis.size if isinstance(request, AllGather) else 1)

    def answer(self, mesh: MeshShape, requests: Sequence[Any]) -> list[Any]:
        (request,) = requests
        lead = {"replicas": 0, "shards": 1}[request.axis.name]
        got = _collective(request, _members(request.tensor, lead, request.axis.size))
        if isinstance(request, (Reduce, AllGather)):
            return [got[0]]
        return [torch.cat(got, dim=lead)]


def _members(x: Tensor, lead: int, size: int) -> list[Tensor]:
    return [x.narrow(lead, i if x.shape[lead] > 1 else 0, 1) for i in range(size)]


def _cut(x: Tensor, size: int, dim: int) -> list[Tensor]:
    assert x.shape[dim] % size == 0, f"{tuple(x.shape)} does not divide by {size} along {dim}"
    return list(x.split(x.shape[dim] // size, dim=dim))


def _collective(request: Any, tensors: list[Tensor]) -> list[Tensor]:
    size = len(tensors)
    if isinstance(request, (Reduce, ReduceScatter)):
        total = torch.stack(tensors).sum(dim=0)
        total = total / size if request.mean else total
        return [total] * size if isinstance(request, Reduce) else _cut(total, size, request.dim)
    if isinstance(request, AllGather):
        return [torch.cat(tensors, dim=request.dim)] * size
    assert isinstance(request, AllToAll)
    cuts = [_cut(tensor, size, request.split_dim) for tensor in tensors]
    return [torch.cat([cut[i] for cut in cuts], dim=request.concat_dim) for i in range(size)]


DRIVERS: list[Driver] = [Coroutines(), Cohort()]
MESHES = [MeshShape(1, 1), MeshShape(1, 4), MeshShape(4, 1), MeshShape(2, 4), MeshShape(2, 2)]

Gradient = Callable[[str, int, int], Tensor]
"""``gradient(name, step, worker)``: the full gradient of one worker's batch, float64."""


def random_gradient(parameters: Sequence[Parameter], scale: float = 1.0) -> Gradient:
    shapes = {p.name: p.shape for p in parameters}
    return lambda name, step, worker: scale * normal(shapes[name], 7, f"g/{name}", worker, step)


def first_value(parameter: Parameter) -> Tensor:
    return normal(parameter.shape, 3, f"x/{parameter.name}")


Before = Callable[[int, Assignment, Tensor, Tensor, Any, Worker], tuple[Tensor, Tensor, Any]]
"""``before(step, assignment, x, grad, state, worker)``: what the update gets in place of (x, grad, state)."""


@dataclass
class Trained:
    """What one worker (or the cohort) ends with."""

    parameters: dict[str, Tensor]
    shards: list[Tensor]
    states: list[Any]
    assignments: tuple[Assignment, ...]


def train(
    driver: Driver,
    mesh: MeshShape,
    rule: Rule,
    parameters: Sequence[Parameter],
    gradient: Gradient,
    steps: int = 5,
    lr: float | None = None,
    dtype: torch.dtype = torch.float64,
    measure: bool = False,
    before: Before | None = None,
) -> Outcome:
    """Train with base traffic as FSDP, DDP or HSDP does it; results are :class:`Trained`.

    ``before`` sees, and may replace, what each update is given: to save and restore, or to watch.
    """
    assignments = stacks(rule, parameters, mesh)

    def laid_out(assignment: Assignment, value: Callable[[str], Tensor]) -> Tensor:
        stack = assignment.stack
        whole = torch.zeros(stack.count, stack.rows * mesh.shards, *stack.shape[1:], dtype=dtype)
        for i, name in enumerate(stack.names):
            whole[i, : stack.shape[0]] = value(name).to(dtype)
        return whole

    async def program(worker: Worker) -> Trained:
        worker = worker.measuring(measure)
        base = worker.mesh.labelled(Label("grad_reduce", "", "grads"))
        start = {p.name: first_value(p) for p in parameters}
        lead = 0 if worker.index is not None else 2
        rows = [-1 - (len(a.stack.shape) - 1) for a in assignments]
        xs, states = [], []
        for assignment, dim in zip(assignments, rows, strict=True):
            whole = laid_out(assignment, start.__getitem__)
            x = worker.mesh.shards.share(whole.reshape((1,) * lead + whole.shape), dim)
            xs.append(x)
            states.append(assignment.rule.init(assignment.stack, x, worker))
        for step in range(steps):
            for i, assignment in enumerate(assignments):
                stack, chosen = assignment.stack, assignment.rule

                def own(index: int, assignment: Assignment = assignment, step: int = step) -> Tensor:
                    return laid_out(assignment, lambda name: gradient(name, step, index))

                grad = worker.ops.each(own)
                grad = await base.shards.reduce_scatter(grad, rows[i], mean=True)
                if not chosen.syncs_replicas(stack.shape, mesh):
                    grad = await base.replicas.mean(grad)
                labelled = worker.labelled("optimizer", stack.title)
                rate = chosen.lr if lr is None else lr
                if before is not None:
                    xs[i], grad, states[i] = before(step, assignment, xs[i], grad, states[i], worker)
                xs[i], states[i] = await chosen.update(stack, xs[i], grad, states[i], rate, labelled)
        full = {}
        for assignment, x, dim in zip(assignments, xs, rows, strict=True):
            whole = await worker.mesh.measuring().shards.all_gather(x, dim)
            whole = whole[(0,) * lead]
            for i, name in enumerate(assignment.stack.names):
                full[name] = whole[i, : assignment.stack.shape[0]]
        return Trained(full, xs, states, assignments)

    return driver.run(mesh, program)


def mean_gradient(gradient: Gradient, mesh: MeshShape) -> Callable[[str, int], Tensor]:
    """The gradient that a single worker with the joint batch sees."""
    return lambda name, step: torch.stack([gradient(name, step, w) for w in range(mesh.workers)]).mean(dim=0)

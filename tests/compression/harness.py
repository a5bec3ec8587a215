"""Gradients of chosen values through a compression on a real engine, step by step, and what everybody got and kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from typing import Any, NamedTuple

import torch
from torch import Tensor

from simdist.communication.trace import CollectiveOp, StepOps
from simdist.compression import Compression
from simdist.execution.engine import LocalEngine
from simdist.execution.wiring import Wiring
from simdist.optimizers import SGD
from simdist.optimizers.rule import Rule
from simdist.parallelism import Compressions, Layout, Reduction
from simdist.program import MeshShape, Worker
from simdist.program.program import LockstepProgram
from simdist.program.random import normal
from simdist.workloads.workload import ParamSpec, Unit

KINDS = ("params", "grads", "factors", "statistics")
WIRING = Wiring.from_names(dict.fromkeys(KINDS, "fp64"))
#: rows that 2 and 3 shards do not divide, vectors, and more dimensions than two
UNITS = (
    Unit("root", (ParamSpec("gain", (7,), "vector"), ParamSpec("embed", (10, 6), "embedding")), 0.0, 0.0, root=True),
    Unit("a", (ParamSpec("wide", (6, 9), "matrix"), ParamSpec("conv", (5, 2, 3), "vector")), 0.0, 0.0),
)
SHAPES = {spec.name: spec.shape for unit in UNITS for spec in unit.params}
#: DDP, FSDP and HSDP
DDP, FSDP, HSDP = MeshShape(3, 1), MeshShape(1, 3), MeshShape(2, 2)
MESHES = [DDP, FSDP, HSDP]
LR = 0.25

Gradient = Callable[[str, int, int], Tensor]
"""``gradient(name, step, worker)``: the full gradient of one worker."""


def random_gradient(scale: float = 1.0, seed: int = 5) -> Gradient:
    return lambda name, step, worker: scale * normal(SHAPES[name], seed, name, worker, step)


def chosen(method: Compression | None, mesh: MeshShape) -> Compressions:
    """Put a method on every axis that there is and that it is defined for."""
    if method is None:
        return Compressions()
    on = {axis for axis in method.axes if mesh.size(axis) > 1}
    return Compressions(method if "replicas" in on else None, method if "shards" in on else None)


def padded(x: Tensor, shards: int) -> Tensor:
    """Return ``[shards * rows, ...]`` with zeros at the end."""
    rows = ceil(x.shape[0] / shards) * shards
    return torch.cat([x, x.new_zeros(rows - x.shape[0], *x.shape[1:])])


class State(NamedTuple):
    memories: dict[str, Any]
    means: dict[str, Tensor]


@dataclass(frozen=True)
class Feeding(LockstepProgram):
    """Reduces given gradients; ``between`` may replace the memories between two steps; ``measure`` audits them."""

    reduction: Reduction
    gradient: Gradient
    dtype: torch.dtype = torch.float64
    between: Callable[[int, Any, Any], Any] | None = None
    measure: bool = False

    async def start(self, worker: Worker) -> State:
        return State(self.fresh(worker), {})

    def fresh(self, worker: Worker) -> Any:
        layout = self.reduction.layout
        pieces = [piece for unit in layout.units for piece in unit.pieces]
        full = {piece.name: torch.zeros(piece.shape, dtype=self.dtype) for piece in pieces}
        return self.reduction.init(worker, layout.unstack(layout.shard(full, worker)))

    async def step(self, worker: Worker, state: State, step: int) -> tuple[State, dict[str, Any]]:
        memories, layout = state.memories, self.reduction.layout
        if self.between is not None:
            memories = self.between(step, memories, self.fresh(worker))
        on_wire = worker.labelled("grad_reduce", "unit", "grads")
        means: dict[str, Tensor] = {}
        kept: dict[str, Any] = {}
        for unit in layout.units:
            for buffer in unit.buffers:
                packed = worker.ops.each(partial(self._packed, buffer, step))
                values, new = await self.reduction.reduce(buffer, packed, memories, on_wire, step)
                means |= values
                kept |= new
        if self.measure:
            await self.reduction.audit(kept, worker)
        return State(kept, means), {}

    def _packed(self, buffer: Any, step: int, worker: int) -> Tensor:
        gradients = {p.name: self.gradient(p.name, step, worker).to(self.dtype) for p in buffer}
        return self.reduction.layout.pack(buffer, gradients)

    async def parameters(self, worker: Worker, state: State) -> dict[str, Tensor]:
        return {}


@dataclass
class Fed:
    """What happened: by step, and in each by worker; for a cohort, the part of it that is the worker's.

    Attributes:
        means: rows of the mean by parameter.
        memories: by ``axis/parameter``.
        states: of the last step, as the engine holds them.
    """

    means: list[list[dict[str, Tensor]]] = field(default_factory=list)
    memories: list[list[dict[str, Any]]] = field(default_factory=list)
    ops: list[StepOps] = field(default_factory=list)
    observations: list[list[dict[str, Any]]] = field(default_factory=list)
    states: list[State] = field(default_factory=list)

    @property
    def collectives(self) -> list[CollectiveOp]:
        """Those of the last step."""
        return [op for wave in self.ops[-1] for op in wave if isinstance(op, CollectiveOp)]


def feed(
    method: Compression | Compressions | None,
    mesh: MeshShape,
    gradient: Gradient,
    engine: str = "inline",
    steps: int = 4,
    rule: Rule | None = None,
    dtype: torch.dtype = torch.float64,
    between: Callable[[int, Any, Any], Any] | None = None,
    wiring: Wiring = WIRING,
    units: tuple[Unit, ...] = UNITS,
    seed: int = 3,
    measure: bool = False,
) -> Fed:
    """Reduce ``steps`` steps' gradients on an engine."""
    layout = Layout(units, rule or SGD(lr=LR), mesh)
    methods = method if isinstance(method, Compressions) else chosen(method, mesh)
    program = Feeding(Reduction(layout, methods, lambda name, step: LR / step), gradient, dtype, between, measure)
    make = LocalEngine.inline if engine == "inline" else LocalEngine.stacked
    fed = Fed()
    with make(program, mesh, wiring, seed) as running:
        for outcome in running.steps(1, steps):
            fed.states = [state for state in running.states if isinstance(state, State)]
            views = [_of_worker(fed.states, mesh, worker) for worker in range(mesh.workers)]
            fed.means.append([view.means for view in views])
            fed.memories.append([view.memories for view in views])
            fed.ops.append(outcome.ops)
            fed.observations.append(outcome.observations)
    return fed


def _of_worker(states: list[State], mesh: MeshShape, worker: int) -> State:
    if len(states) > 1 or mesh.workers == 1:
        return states[worker]
    place = divmod(worker, mesh.shards)
    state: State = mapped(lambda x: x[place[0] % x.shape[0], place[1] % x.shape[1]] if x.ndim else x, states[0])
    return state


def mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Apply a function to every tensor of nested named tuples and dicts."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: mapped(function, item) for key, item in value.items()}
    return type(value)(*(mapped(function, item) for item in value))


def tensors(value: Any) -> list[Tensor]:
    """Return all tensors of nested named tuples and dicts, in order."""
    found: list[Tensor] = []

    def note(x: Tensor) -> Tensor:
        found.append(x)
        return x

    mapped(note, value)
    return found


def rows_of(name: str, mesh: MeshShape, worker: int) -> slice:
    """Return a worker's rows of the padded parameter."""
    rows = ceil(SHAPES[name][0] / mesh.shards)
    first = worker % mesh.shards * rows
    return slice(first, first + rows)


def mean_gradient(gradient: Gradient, name: str, step: int, mesh: MeshShape) -> Tensor:
    """Return the padded mean over all workers."""
    return padded(torch.stack([gradient(name, step, w) for w in range(mesh.workers)]).mean(0), mesh.shards)

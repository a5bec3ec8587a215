"""A torch optimizer's update on the worker mesh, on shards or on gathered tensors (see ``torch_optimizer.py``)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from simdist.errors import ProgramError
from simdist.optimizers.padding import real_rows
from simdist.optimizers.rule import Stack
from simdist.optimizers.torch_memory import Memory, over_tensors
from simdist.optimizers.torch_stepping import Stepped, in_eval_mode, stepped
from simdist.program import Worker
from simdist.program.random import stream
from simdist.program.state import Loose, tensors_of


class Steps(Protocol):
    """What is needed of a rule here."""

    @property
    def title(self) -> str: ...

    @property
    def lr(self) -> float: ...

    @property
    def on_shards(self) -> bool: ...

    @property
    def gather_parameters(self) -> bool: ...

    def make(self, p: Parameter, decay: bool) -> Optimizer: ...


class TorchState(NamedTuple):
    """``steps`` taken, and what the torch optimizers hold, which takes form with the first step.

    ``held`` has ``lead``, the sizes of the leading worker axes; ``memories``, one for each copy of each matrix (one in
    all on shards); and ``whole``, the parameters as this worker knows them all (gathered on several shards only).
    """

    steps: int
    held: Loose


def held_bytes(state: TorchState) -> float:
    """Return the bytes that one worker's optimizers hold, counters left out."""
    copies: int = math.prod(state.held.get("lead", ()))
    return sum(x.numel() * x.element_size() for x in tensors_of(state.held) if x.ndim) / copies


async def run_on_shards(
    rule: Steps, stack: Stack, x: Tensor, grad: Tensor, state: TorchState, lr: float, worker: Worker
) -> tuple[Tensor, TorchState]:
    """Step this worker's rows of the stack as one tensor; see :meth:`simdist.optimizers.rule.Rule.update`."""
    lead = _lead(stack, state, x, grad)
    x, grad = (each.expand(*lead, *each.shape[len(lead) :]) for each in (x, grad))
    memory = _joint_memory(state, len(lead), x.shape) if state.steps else None
    done = _step(rule, stack, stack.title, x, grad, memory, state, lr, worker)
    await worker.compute(done.operations / math.prod(lead), rule.title)
    real = real_rows(stack, x, worker)
    clean = over_tensors(done.memory, lambda t: torch.where(real, t, 0) if t.shape == x.shape else t)
    held = Loose(lead=list(lead), memories=[clean], whole=None)
    return torch.where(real, done.x, 0), TorchState(state.steps + 1, held)


def evaluated_on_shards(rule: Steps, stack: Stack, x: Tensor, state: TorchState, worker: Worker) -> Tensor:
    """Return this worker's rows in eval mode; see :meth:`simdist.optimizers.rule.Rule.evaluated`."""
    if not state.steps:
        return x
    lead = _lead(stack, state, x)
    x = x.expand(*lead, *x.shape[len(lead) :])
    new = _in_eval_mode(rule, stack, stack.title, x, _joint_memory(state, len(lead), x.shape))
    return torch.where(real_rows(stack, x, worker), new, 0)


async def run_gathered(
    rule: Steps, stack: Stack, x: Tensor, grad: Tensor, state: TorchState, lr: float, worker: Worker
) -> tuple[Tensor, TorchState]:
    """Step whole parameters, each by itself, and keep this worker's rows; see `Rule.update`."""
    shards, dim, m = worker.mesh.shards, -len(stack.shape), stack.shape[0]
    grad = await shards.all_gather(grad, dim, part="gradient")
    kept = _kept(rule, stack, x, state, worker)
    whole = await shards.all_gather(x, dim, part="parameter", wire="params") if kept is None else kept
    lead = _lead(stack, state, whole, grad)
    grad = grad.expand(*lead, *grad.shape[len(lead) :])
    whole = whole.expand(*lead, *whole.shape[len(lead) :])
    new, memories, operations = whole.clone(), [], 0.0
    for copy, place in enumerate(itertools.product(*map(range, lead))):
        for i, name in enumerate(stack.names):
            at: Any = (*place, i, slice(m))
            memory = _own_memory(state, place, i, stack) if state.steps else None
            done = _step(rule, stack, name, whole[at], grad[at], memory, state, lr, worker)
            new[at] = done.x
            memories.append(done.memory)
            operations += 0.0 if copy else done.operations
    await worker.compute(operations, rule.title)
    rows = shards.share(new, dim)
    keeps = shards.size > 1 and not rule.gather_parameters
    if rule.gather_parameters and shards.size > 1:
        # what was gathered may be rounded by its codec, which must not touch the parameters themselves
        rows = x + shards.share(new - whole, dim)
    held = Loose(lead=list(lead), memories=memories, whole=new if keeps else None)
    return rows, TorchState(state.steps + 1, held)


def evaluated_gathered(rule: Steps, stack: Stack, x: Tensor, state: TorchState, worker: Worker) -> Tensor:
    """Return this worker's rows of the whole parameters in eval mode; see `Rule.evaluated`.

    Needs no traffic: on several shards every worker knows whole parameters (without ``gather_parameters``).
    """
    if not state.steps:
        return x
    kept = _kept(rule, stack, x, state, worker)
    whole = x if kept is None else kept
    lead = _lead(stack, state, whole)
    whole = whole.expand(*lead, *whole.shape[len(lead) :])
    new = whole.clone()
    for place in itertools.product(*map(range, lead)):
        for i, name in enumerate(stack.names):
            at: Any = (*place, i, slice(stack.shape[0]))
            new[at] = _in_eval_mode(rule, stack, name, whole[at], _own_memory(state, place, i, stack))
    rows: Tensor = worker.mesh.shards.share(new, -len(stack.shape))
    return rows


def _kept(rule: Steps, stack: Stack, x: Tensor, state: TorchState, worker: Worker) -> Tensor | None:
    """Return the whole parameters as this worker knows them from its own steps, None where it does not keep them."""
    kept: Tensor | None = state.held["whole"] if state.steps else None
    if kept is None:
        return None
    mine = worker.mesh.shards.share(kept, -len(stack.shape))
    # a diverged parameter (NaN) is not a changed one
    # a plan has shapes only
    if not (x.is_meta or torch.allclose(mine, x, rtol=0, atol=0, equal_nan=True)):
        raise ProgramError(
            f"optimizer {rule.title}: the schedule changed {stack.title!r} since the last step, so that "
            "the rows that other shards hold are not known any more; expected optimizer.gather_parameters: true"
        )
    return kept


def _step(
    rule: Steps,
    stack: Stack,
    name: str,
    x: Tensor,
    grad: Tensor,
    memory: Memory | None,
    state: TorchState,
    lr: float,
    worker: Worker,
) -> Stepped:
    draws = stream(worker.seed, f"torch/{name}", step=state.steps).initial_seed()
    with _named(f"{rule.title} failed on {name!r} in its step {state.steps + 1}"):
        return stepped(
            lambda p: rule.make(p, stack.decay),
            x,
            grad,
            memory,
            lr=lr,
            made_with=rule.lr,
            draws=draws,
            by_number=rule.on_shards,
        )


def _in_eval_mode(rule: Steps, stack: Stack, name: str, x: Tensor, memory: Memory) -> Tensor:
    with _named(f"{rule.title} failed on {name!r} in its eval()"):
        return in_eval_mode(lambda p: rule.make(p, stack.decay), x, memory)


@contextmanager
def _named(failed: str) -> Iterator[None]:
    """Say what failed where a class raises."""
    try:
        yield
    except Exception as error:  # whatever a user's class raises
        text = str(error).strip().partition("\n")[0]
        raise ProgramError(f"optimizer {failed}: {type(error).__name__}: {text}") from error


def _lead(stack: Stack, state: TorchState, *tensors: Tensor) -> tuple[int, ...]:
    """Return the leading worker axes over which values, gradients and memories differ."""
    leads = [each.shape[: each.ndim - len(stack.shape) - 1] for each in tensors]
    return tuple(torch.broadcast_shapes(*leads, *([state.held["lead"]] if state.steps else [])))


def _joint_memory(state: TorchState, lead: int, shape: tuple[int, ...]) -> Memory:
    """Return the memory of a stack that is one tensor of this shape."""
    (memory,) = state.held["memories"]
    found: Memory = over_tensors(memory, lambda t: _spread(t, lead, shape))
    return found


def _own_memory(state: TorchState, place: tuple[int, ...], i: int, stack: Stack) -> Memory:
    """Return the memory of matrix ``i`` of the copy at ``place``."""
    found: Memory = state.held["memories"][_source(place, state, i, stack)]
    return found


def _spread(t: Tensor, lead: int, shape: tuple[int, ...]) -> Tensor:
    """Return a remembered tensor that is laid out as the parameter with as many worker copies as it has now."""
    alike = t.ndim == len(shape) and t.shape[lead:] == shape[lead:]
    return t.expand(shape).clone() if alike and t.shape != shape else t


def _source(place: tuple[int, ...], state: TorchState, i: int, stack: Stack) -> int:
    """Return where the memory of matrix ``i`` of the copy at ``place`` is; copies that were one share theirs."""
    index = 0
    for at, size in zip(place, state.held["lead"], strict=True):
        index = index * size + min(at, size - 1)
    return index * len(stack.names) + i

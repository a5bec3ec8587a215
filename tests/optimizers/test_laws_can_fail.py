"""Each law of the catalogue catches the fault that it is about: a sound rule passes it, a faulty one does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from simdist.errors import ProgramError
from simdist.optimizers import MeshShape
from simdist.optimizers.rule import Rule, Stack
from simdist.program import Worker
from tests.optimizers import byte_forms as forms
from tests.optimizers import test_laws as workers
from tests.optimizers import test_laws_inputs as inputs
from tests.optimizers.catalogue import Case, Limit
from tests.optimizers.harness import Cohort, Coroutines


class State(NamedTuple):
    momentum: Any


class Sound(Rule):
    """Momentum."""

    name: str = "sound"
    lr: float = 0.1

    def init(self, stack: Stack, x: Tensor, worker: Worker) -> State:
        return State(torch.zeros_like(x))

    async def update(
        self, stack: Stack, x: Tensor, grad: Tensor, state: Any, lr: float, worker: Worker
    ) -> tuple[Tensor, State]:
        await worker.compute(stack.local_numel, "sound")
        momentum = 0.5 * state.momentum + grad
        return self.decayed(stack, x, lr) - lr * await self.direction(momentum, worker), State(momentum)

    async def direction(self, momentum: Tensor, worker: Worker) -> Tensor:
        return momentum


class NormOfTheShard(Sound):
    async def direction(self, momentum: Tensor, worker: Worker) -> Tensor:
        return momentum / (1 + momentum.square().sum(dim=(-2, -1), keepdim=True))


class NormOfTheStack(Sound):
    async def direction(self, momentum: Tensor, worker: Worker) -> Tensor:
        total = momentum.square().sum(dim=(-3, -2, -1), keepdim=True)
        return momentum / (1 + await worker.mesh.shards.sum(total))


class NormThatMayBeZero(Sound):
    async def direction(self, momentum: Tensor, worker: Worker) -> Tensor:
        return momentum / (await worker.mesh.shards.sum(momentum.square().sum(dim=(-2, -1), keepdim=True))).sqrt()


class OtherOnEachReplica(Sound):
    async def direction(self, momentum: Tensor, worker: Worker) -> Tensor:
        return momentum + 1e-13 * worker.ops.each(lambda w: torch.full((1, 1, 1), float(w), dtype=momentum.dtype))


class SumForMean(Sound):
    def syncs_replicas(self, shape: tuple[int, ...], mesh: MeshShape) -> bool:
        return True

    async def direction(self, momentum: Tensor, worker: Worker) -> Tensor:
        return await worker.mesh.replicas.sum(momentum)


class SendsMore(Sound):
    async def direction(self, momentum: Tensor, worker: Worker) -> Tensor:
        await worker.mesh.shards.sum(momentum[..., :1, :1])
        return momentum


class WorksMoreWhenAlone(Sound):
    async def direction(self, momentum: Tensor, worker: Worker) -> Tensor:
        await worker.compute(0.0 if worker.index is None else 1.0)
        return momentum


class WorksMoreWhenMeasured(Sound):
    async def direction(self, momentum: Tensor, worker: Worker) -> Tensor:
        await worker.compute(1.0 if worker.measures else 0.0)
        return momentum


class MovesEverything(Sound):
    async def direction(self, momentum: Tensor, worker: Worker) -> Tensor:
        return momentum + 1e-12


class MovesByItself(Sound):
    async def update(self, stack: Stack, x: Tensor, *rest: Any) -> tuple[Tensor, State]:
        new, state = await super().update(stack, x, *rest)
        return new * (1 - 1e-12), state


class Remembers(Sound):
    async def update(self, stack: Stack, x: Tensor, *rest: Any) -> tuple[Tensor, State]:
        REMEMBERED.append(1)
        new, state = await super().update(stack, x, *rest)
        return new * (1 + 1e-12 * len(REMEMBERED)), state


class StartsEmpty(Sound):
    def init(self, stack: Stack, x: Tensor, worker: Worker) -> State:
        return State(None)

    async def update(
        self, stack: Stack, x: Tensor, grad: Tensor, state: Any, lr: float, worker: Worker
    ) -> tuple[Tensor, State]:
        momentum = torch.zeros_like(x) if state.momentum is None else state.momentum
        return await super().update(stack, x, grad, State(momentum), lr, worker)


class KeepsTheFirstMomentum(Sound):
    """Looks at which object it was given, which no file can hold."""

    async def update(
        self, stack: Stack, x: Tensor, grad: Tensor, state: Any, lr: float, worker: Worker
    ) -> tuple[Tensor, State]:
        known = any(state.momentum is one for one in REMEMBERED)
        new, after = await super().update(stack, x, grad, state, lr * (1.0 if known else 0.5), worker)
        REMEMBERED.append(after.momentum)
        return new, after


class InPlace(Sound):
    async def update(
        self, stack: Stack, x: Tensor, grad: Tensor, state: Any, lr: float, worker: Worker
    ) -> tuple[Tensor, State]:
        state.momentum.mul_(0.5).add_(grad)
        return x - lr * state.momentum, state


REMEMBERED: list[Any] = []

Law = Callable[..., None]
INLINE, STACKED = Coroutines(), Cohort()
HSDP = MeshShape(2, 2)
FAULTS: list[tuple[type[Rule], Law, dict[str, Any]]] = [
    (
        NormOfTheShard,
        workers.test_many_workers_are_one_with_the_mean_gradient,
        {"driver": STACKED, "mesh": MeshShape(1, 4)},
    ),
    (SumForMean, workers.test_many_workers_are_one_with_the_mean_gradient, {"driver": INLINE, "mesh": MeshShape(4, 1)}),
    (OtherOnEachReplica, workers.test_replicas_hold_the_same_bits, {"driver": INLINE, "mesh": HSDP}),
    (OtherOnEachReplica, workers.test_replicas_hold_the_same_bits, {"driver": STACKED, "mesh": HSDP}),
    (SumForMean, workers.test_identical_workers_are_one_worker, {"driver": STACKED, "mesh": HSDP}),
    (SendsMore, workers.test_bytes_are_those_of_the_closed_form, {"driver": INLINE, "mesh": HSDP}),
    (WorksMoreWhenAlone, workers.test_drivers_agree_on_transfers_and_flops, {"mesh": HSDP}),
    (MovesEverything, workers.test_dummies_and_padding_rows_stay_zero, {"driver": INLINE, "mesh": MeshShape(1, 4)}),
    (MovesEverything, workers.test_dummies_and_padding_rows_stay_zero, {"driver": STACKED, "mesh": MeshShape(1, 4)}),
    (Remembers, workers.test_a_second_run_gives_the_same_bits, {"driver": INLINE, "mesh": HSDP}),
    (WorksMoreWhenMeasured, workers.test_measuring_changes_no_bit_and_sends_no_byte, {"driver": STACKED, "mesh": HSDP}),
    (MovesEverything, inputs.test_zero_gradients_leave_parameters_to_weight_decay, {"driver": STACKED, "mesh": HSDP}),
    (MovesByItself, inputs.test_without_a_learning_rate_nothing_moves, {"driver": STACKED, "mesh": HSDP}),
    (KeepsTheFirstMomentum, inputs.test_a_run_can_be_saved_and_resumed, {"driver": STACKED, "mesh": HSDP}),
    (StartsEmpty, inputs.test_a_run_can_be_saved_and_resumed, {"driver": STACKED, "mesh": HSDP}),
    (InPlace, inputs.test_nothing_is_changed_in_place, {"driver": INLINE, "mesh": HSDP}),
    (
        NormThatMayBeZero,
        inputs.test_poor_gradients_give_finite_parameters,
        {"driver": STACKED, "mesh": HSDP, "dtype": torch.float64},
    ),
    (
        NormThatMayBeZero,
        inputs.test_single_rows_and_columns,
        {"driver": STACKED, "mesh": HSDP, "dtype": torch.float32},
    ),
    (NormOfTheStack, inputs.test_a_matrix_does_not_depend_on_its_neighbours, {}),
]


@pytest.mark.parametrize(
    ("faulty", "law", "where"), FAULTS, ids=[f"{rule.__name__}-{law.__name__[5:]}" for rule, law, _ in FAULTS]
)
def test_a_law_catches_its_fault(faulty: type[Rule], law: Law, where: dict[str, Any]) -> None:
    REMEMBERED.clear()
    law(case=Case("sound", Sound(lr=0.1), forms.nothing), **where)
    with pytest.raises((AssertionError, ProgramError)):
        law(case=Case("faulty", faulty(lr=0.1), forms.nothing), **where)


def test_scale_invariance_is_checked_both_ways() -> None:
    inputs.test_scale_invariance_is_as_declared(Case("sound", Sound(lr=0.1), forms.nothing))
    with pytest.raises(AssertionError, match="steps changed by"):
        inputs.test_scale_invariance_is_as_declared(Case("sound", Sound(lr=0.1), forms.nothing, scale_invariant=True))
    with pytest.raises(AssertionError, match="steps changed by 0"):
        inputs.test_scale_invariance_is_as_declared(Case("still", Still(lr=0.1), forms.nothing))


class Still(Sound):
    async def direction(self, momentum: Tensor, worker: Worker) -> Tensor:
        return torch.ones_like(momentum)


def test_limits_that_are_none_are_caught() -> None:
    where = {"driver": STACKED, "mesh": HSDP}
    workers.test_lossless_limits(limit=Limit(Sound(lr=0.1), Sound(lr=0.1, weight_decay=1e-12)), **where)
    with pytest.raises(AssertionError):
        workers.test_lossless_limits(limit=Limit(Sound(lr=0.1), Sound(lr=0.1, weight_decay=1e-3)), **where)


def test_a_promise_that_is_not_made_needs_a_reason() -> None:
    with pytest.raises(AssertionError, match="say why"):
        Case("silent", Sound(lr=0.1), forms.nothing, sharded=None)
    honest = Case("outspoken", Sound(lr=0.1), forms.nothing, sharded=None, why="every shard is normalised by itself")
    with pytest.raises(AssertionError, match="sharded"):
        workers.test_promises_are_withheld_for_a_reason(honest)
    workers.test_promises_are_withheld_for_a_reason(replace(honest, rule=NormOfTheShard(lr=0.1)))

"""The lock-step loop: what it reports, what it holds, and that answers are shared and written to by nobody."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from simdist.assembly import build_job, build_program, build_task, build_wiring
from simdist.communication.trace import StepOps
from simdist.errors import ProgramError
from simdist.execution.engine import Engine, LocalEngine, MayBegin
from simdist.execution.exchange import Alone
from simdist.execution.inline import inline_worker
from simdist.execution.lockstep import BlockResolver, LockstepBlock, Resolver
from simdist.execution.saved import Part
from simdist.execution.stacked import StackedResolver, cohort
from simdist.execution.wiring import Wiring
from simdist.optimizers import optimizers
from simdist.program import MeshShape, Worker
from simdist.program.program import LockstepProgram
from simdist.program.requests import Wave
from simdist.scenario import Scenario
from tests.execution.needs import NEEDS

WIRING = Wiring.from_names(dict.fromkeys(("params", "grads", "factors", "statistics"), "fp32"))
#: settings beyond name and lr that a rule cannot do without


class Guarded(Resolver):
    """Passes waves on, and notes every tensor that went in or came out with its version counter."""

    def __init__(self, inner: Resolver) -> None:
        self.inner = inner
        self.seen: list[tuple[str, Tensor, int]] = []

    def resolve(self, waves: Any) -> Any:
        for wave in waves:
            self.note("asked", [getattr(request, "tensor", None) for request in wave])
        answers, ops = self.inner.resolve(waves)
        for row in answers:
            self.note("answered", row)
        return answers, ops

    def note(self, what: str, values: Any) -> None:
        self.seen += [(what, x, x._version) for x in values if isinstance(x, Tensor)]


def scenario(optimizer: str, replicas: int, shards: int, **extra: Any) -> Scenario:
    return Scenario.from_dict(
        {
            "steps": 2,
            "workload": {"name": "teacher", "rows": 9, "columns": 8, "matrices": 3},
            "mesh": {"replicas": replicas, "shards": shards},
            "optimizer": {"name": optimizer, "lr": 0.01, **NEEDS.get(optimizer, {})},
            "diagnostics": {"every": 1},
            **extra,
        }
    )


@pytest.mark.parametrize("mesh", [(2, 3), (4, 1)], ids=str)
@pytest.mark.parametrize("engine", ["inline", "stacked"])
@pytest.mark.parametrize("optimizer", optimizers.names())
def test_nobody_writes_into_what_is_shared(optimizer: str, engine: str, mesh: tuple[int, int]) -> None:
    """Two real training steps: neither contributions nor answers are changed afterwards, nor the states of before."""
    chosen = scenario(optimizer, *mesh)
    shape, wiring = chosen.mesh.shape, build_wiring(chosen)
    program = build_program(chosen, build_job(chosen, build_task(chosen)))
    if engine == "inline":
        workers = [inline_worker(shape, index, 0) for index in range(shape.workers)]
        guard = Guarded(BlockResolver(shape, wiring, Alone(shape.workers)))
    else:
        workers, guard = [cohort(shape, 0)], Guarded(StackedResolver(shape, wiring))
    block = LockstepBlock(program, workers, guard)
    block.start()
    for step in (1, 2):
        before = [x for state in block.states for x in tensors(state)]
        copies = [x.clone() for x in before]
        block.step(step)
        assert all(torch.equal(x, copy) for x, copy in zip(before, copies, strict=True)), "states are values"
    block.parameters()
    assert {what for what, *_ in guard.seen} == {"asked", "answered"}
    for what, x, version in guard.seen:
        assert x._version == version, f"a tensor that was {what} has been written to"


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [x for item in value for x in tensors(item)] if isinstance(value, (list, tuple)) else []


class Counter(LockstepProgram):
    """Counts steps; asks ``waves`` times for a sum in each."""

    def __init__(self, waves: int = 2) -> None:
        self.waves = waves

    async def start(self, worker: Worker) -> int:
        return 0

    async def step(self, worker: Worker, state: int, step: int) -> tuple[int, dict[str, Any]]:
        assert state == step - 1
        own = worker.ops.each(lambda w: torch.tensor(float(w)))
        for _ in range(self.waves):
            own = await worker.mesh.workers.mean(own)
        worker.observe(matrix="m", mean=own, step=step)
        return step, {"mean": own, "number": 3.5, "nothing": None}

    async def parameters(self, worker: Worker, state: int) -> dict[str, Tensor]:
        return {"steps": worker.ops.alike(torch.tensor([float(state)]))}


def engine_of(name: str, program: LockstepProgram, hold: Any = None) -> Engine:
    make = LocalEngine.inline if name == "inline" else LocalEngine.stacked
    return make(program, MeshShape(1, 3), WIRING, 0, hold)


@pytest.mark.parametrize("name", ["inline", "stacked"])
def test_reports_and_observations_are_numbers_of_their_step(name: str) -> None:
    with engine_of(name, Counter()) as engine:
        first, second = engine.steps(1, 2)
        (third,) = engine.steps(3, 3)
        assert engine.parameters()["steps"].tolist() == [3.0]
        assert engine.peak_rss_bytes() > 10**7
    assert [outcome.step for outcome in (first, second, third)] == [1, 2, 3]
    for outcome in (first, second, third):
        assert outcome.report == {"mean": 1.0, "number": 3.5, "nothing": None}
        assert outcome.observations == [{"matrix": "m", "mean": 1.0, "step": outcome.step}]
        assert len(outcome.ops) == 2
        assert outcome.ops == first.ops


@pytest.mark.parametrize("name", ["inline", "stacked"])
def test_each_wave_is_held_with_the_step_so_far(name: str) -> None:
    held: list[StepOps] = []
    with engine_of(name, Counter(3), held.append) as engine:
        outcomes = list(engine.steps(1, 2))
        engine.parameters()
    assert [len(ops) for ops in held] == [1, 2, 3, 1, 2, 3]
    assert held[2] == outcomes[0].ops
    assert held[3] == held[2][:1]


def test_waves_of_measurements_alone_leave_no_trace() -> None:
    class Measuring(Counter):
        async def step(self, worker: Worker, state: int, step: int) -> tuple[int, dict[str, Any]]:
            await worker.mesh.measuring().workers.sum(worker.ops.each(lambda w: torch.tensor(1.0)))
            return step, {}

    held: list[StepOps] = []
    with engine_of("inline", Measuring(), held.append) as engine:
        (outcome,) = engine.steps(1, 1)
    assert outcome.ops == ()
    assert held == []


@pytest.mark.parametrize("name", ["inline", "stacked"])
def test_an_error_in_a_step_leaves_no_coroutine_behind(name: str) -> None:
    """Python warns of coroutines that were never awaited, and warnings are errors here."""

    class Failing(Counter):
        async def step(self, worker: Worker, state: int, step: int) -> tuple[int, dict[str, Any]]:
            if worker.index in (1, None):
                raise ProgramError("one worker cannot go on")
            return await super().step(worker, state, step)

    with engine_of(name, Failing()) as engine, pytest.raises(ProgramError, match="cannot go on"):
        list(engine.steps(1, 1))


class Closing(Engine):
    """Notes whether it was closed, and fails as it is told."""

    def __init__(self, failure: BaseException) -> None:
        self.failure = failure
        self.closed = False

    def start(self) -> None:
        raise self.failure

    def steps(self, first: int, last: int, may_begin: MayBegin = lambda step: True) -> Any:
        raise AssertionError

    def save(self) -> Any:
        raise AssertionError

    def restore(self, parts: Sequence[Part], step: int) -> None:
        raise AssertionError

    @property
    def intact_after(self) -> int | None:
        raise AssertionError

    def parameters(self) -> dict[str, Tensor]:
        raise AssertionError

    def peak_rss_bytes(self) -> int:
        raise AssertionError

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("failure", [ProgramError("no"), KeyboardInterrupt()])
def test_an_engine_that_does_not_start_is_closed(failure: BaseException) -> None:
    engine = Closing(failure)
    with pytest.raises(type(failure)), engine:
        pass
    assert engine.closed


def test_a_wave_of_one_worker_answers_that_worker() -> None:
    mesh = MeshShape(1, 1)
    resolver = BlockResolver(mesh, WIRING, Alone(1))
    empty: Wave = ()
    assert resolver.resolve([empty]) == ([()], ())

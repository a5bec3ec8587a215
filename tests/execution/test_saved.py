"""States saved between two steps: going on from them gives the bits of a run that never stopped."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from simdist.assembly import build_engine, build_job, build_task
from simdist.errors import InputError
from simdist.execution.engine import Engine
from simdist.execution.lockstep import StepOutcome
from simdist.execution.saved import Part, SavedBlock, dealt_out
from simdist.scenario import Scenario
from simdist.workloads.workload import Task
from tests.codecs.catalogue import CATALOGUE as CODECS
from tests.compression.catalogue import CATALOGUE as COMPRESSIONS
from tests.optimizers.catalogue import CASES, Case

STEPS, BREAK = 4, 2


def scenario(**changes: Any) -> Scenario:
    data: dict[str, Any] = {
        "steps": STEPS,
        "workload": {"name": "teacher", "rows": 10, "columns": 8, "matrices": 3},
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
        "mesh": {"replicas": 2, "shards": 2},
        "diagnostics": {"every": 2},
    }
    return Scenario.model_validate({**data, **changes})


@functools.cache
def task() -> Task:
    return build_task(scenario())


def started(wanted: Scenario) -> Engine:
    engine = build_engine(wanted, build_job(wanted, task()))
    engine.start()
    return engine


def told(outcomes: Sequence[StepOutcome]) -> list[Any]:
    return [(outcome.step, outcome.ops, str(outcome.report), str(outcome.observations)) for outcome in outcomes]


def resumes_to_the_same_bits(wanted: Scenario) -> None:
    whole = started(wanted)
    undisturbed = list(whole.steps(1, STEPS))
    first = started(wanted)
    seen = list(first.steps(1, BREAK))
    parts = list(first.save())
    second = started(wanted)
    second.restore(parts, BREAK)
    seen += second.steps(BREAK + 1, STEPS)
    assert told(seen) == told(undisturbed)
    expected, got = whole.parameters(), second.parameters()
    assert all(torch.equal(expected[name], got[name]) for name in expected)


@pytest.mark.parametrize("engine", ["inline", "stacked"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_every_rule_goes_on_with_the_same_bits(case: Case, engine: str) -> None:
    resumes_to_the_same_bits(scenario(optimizer=case.rule, engine={"name": engine, "threads": 1}))


@pytest.mark.parametrize("codec", list(CODECS))
def test_every_codec_goes_on_with_the_same_noise(codec: str) -> None:
    resumes_to_the_same_bits(scenario(wire={"grads": codec, "params": "bf16"}))


@pytest.mark.parametrize("method", list(COMPRESSIONS))
def test_every_compression_goes_on_with_its_memory(method: str) -> None:
    resumes_to_the_same_bits(scenario(compression={"replicas": COMPRESSIONS[method].method}))


@pytest.mark.parametrize("engine", ["inline", "stacked"])
def test_a_memory_of_the_shards_goes_on(engine: str) -> None:
    method = {"name": "error_feedback", "codec": "int8"}
    resumes_to_the_same_bits(scenario(compression={"shards": method}, engine={"name": engine, "threads": 1}))


def test_saving_is_no_part_of_training() -> None:
    saved, other = started(scenario()), started(scenario())
    seen: list[StepOutcome] = []
    for step in range(1, STEPS + 1):
        seen += saved.steps(step, step)
        list(saved.save())
    assert told(seen) == told(list(other.steps(1, STEPS)))


def test_states_of_single_workers_may_be_dealt_out_anew() -> None:
    def saved(*workers: int) -> bytes:
        states: Any = [torch.tensor([float(worker)]) for worker in workers]
        return SavedBlock(range(workers[0], workers[-1] + 1), "workers", states).to_bytes()

    blocks = [saved(0, 1, 2), saved(3, 4), saved(5, 6, 7)]
    assert dealt_out(blocks, range(2, 6), "workers") == [torch.tensor([float(worker)]) for worker in range(2, 6)]
    with pytest.raises(InputError, match="lacks worker 8"):
        dealt_out(blocks, range(6, 10), "workers")


@pytest.mark.parametrize(("written", "read"), [("inline", "stacked"), ("stacked", "inline")])
def test_cohorts_and_single_workers_do_not_take_over_from_each_other(written: str, read: str) -> None:
    one, other = (started(scenario(engine={"name": name, "threads": 1})) for name in (written, read))
    list(one.steps(1, 1))
    with pytest.raises(InputError, match=r"checkpoint was written by (un)?stacked.*expected the same to go on"):
        other.restore(list(one.save()), 1)


def test_a_cohort_needs_its_own_workers() -> None:
    block = SavedBlock(range(4), "cohort", [torch.zeros(2, 2)]).to_bytes()
    with pytest.raises(InputError, match="workers 0 to 3; got a cohort of the workers 0 to 1"):
        dealt_out([block], range(2), "cohort")


def test_another_programs_states_are_refused() -> None:
    sgd, adamw = started(scenario()), started(scenario(optimizer={"name": "adamw", "lr": 0.1}))
    with pytest.raises(InputError, match=r"does not fit this program: state\.rules\[0\]"):
        adamw.restore(list(sgd.save()), 1)


def test_reading_a_block_runs_no_code() -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (print, ("got you",))

    file = io.BytesIO()
    torch.save({"workers": [0, 1], "form": "workers", "states": [Evil()]}, file)
    with pytest.raises(InputError, match="cannot be read"):
        SavedBlock.from_bytes(file.getvalue())


@pytest.mark.parametrize("data", [b"", b"no zip file", SavedBlock(range(1), "workers", [None]).to_bytes()[:-40]])
def test_torn_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        SavedBlock.from_bytes(data)


def test_no_step_begins_after_the_first_refusal() -> None:
    engine = started(scenario())
    asked: list[int] = []

    def may_begin(step: int) -> bool:
        asked.append(step)
        return step < 3

    assert [outcome.step for outcome in engine.steps(1, STEPS, may_begin)] == [1, 2]
    assert asked == [1, 2, 3]
    assert engine.intact_after == 2
    assert [part.workers for part in engine.save()] == [range(4)]
    assert isinstance(next(engine.save()), Part)

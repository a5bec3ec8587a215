"""Sections of a step: cut only where all that follows waits for all before, and priced one by one to the same times."""

from __future__ import annotations

import numpy as np
import pytest

from simdist.communication.plans import collectives_named
from simdist.communication.trace import CollectiveOp, ComputeOp, StepOps
from simdist.execution.compute_model import ComputeModel
from simdist.execution.overlap import FSDP, NoOverlap, Overlap
from simdist.execution.pricing import StepPricer
from simdist.execution.replay import Replay
from simdist.execution.sections import sections
from simdist.execution.tasks import StepGraph
from simdist.network import Star
from tests.execution.recorded_steps import POLICIES, SETUPS, recorded
from tests.execution.test_likeness import step as hsdp_step


def with_optimizer(sizes: tuple[int, ...] = (1001, 77)) -> StepOps:
    """HSDP's passes, in which axes meet on links, and an optimizer whose waves follow one after the other."""
    more = [(CollectiveOp("all_reduce", "shards", "optimizer", f"m{size}", "fp32", size),) for size in sizes]
    return (*hsdp_step(), *more, (ComputeOp(1e9, purpose="optimizer"),))


def noted_replays(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the number of tasks of every replay from now on."""
    replayed: list[int] = []
    real = Replay.run

    def run(self: Replay) -> object:
        replayed.append(len(self._graph.tasks))
        return real(self)

    monkeypatch.setattr(Replay, "run", run)
    return replayed


def cuts(graph: StepGraph) -> list[tuple[int, int]]:
    return [(tasks.start, tasks.stop) for tasks, _ in sections(graph)]


def test_without_overlap_every_wave_is_a_section() -> None:
    step = with_optimizer()
    assert cuts(NoOverlap().graph(step)) == [(number, number + 1) for number in range(len(step))]


def test_overlapping_passes_hang_together_and_the_optimizer_s_waves_do_not() -> None:
    """Gather 1; gather 2 beside pass 1; all up to the last scatter; then one thing after the other."""
    graph = FSDP().graph(with_optimizer())
    assert cuts(graph) == [(0, 1), (1, 3), (3, 11), (11, 12), (12, 13), (13, 14), (14, 15)]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("setup", SETUPS)
def test_a_section_comes_after_all_before_it(setup: str, policy: str) -> None:
    """By running every task at random seconds: what follows a cut never begins before all before it has ended."""
    graph = POLICIES[policy].graph(recorded(setup))
    parts = list(sections(graph))
    assert [n for tasks, _ in parts for n in range(tasks.start, tasks.stop)] == list(range(len(graph.tasks)))
    seconds = np.random.default_rng(0).random(len(graph.tasks))
    end: list[float] = []
    free: dict[str, float] = {}
    begin = []
    for task, length in zip(graph.tasks, seconds, strict=True):
        begin.append(max([free.get(task.stream, 0.0), *(end[earlier] for earlier in task.after)]))
        end.append(begin[-1] + length)
        free[task.stream] = end[-1]
    for tasks, own in parts:
        assert len(own.tasks) == tasks.stop - tasks.start
        assert min(begin[tasks]) >= max(end[: tasks.start], default=0.0)


def price(policy: Overlap, step: StepOps, speeds: tuple[float, ...], *, exact: bool) -> StepPricer:
    return StepPricer(
        Star(bandwidth=1e8).network(16),
        (4, 4),
        collectives_named("ring"),
        ComputeModel(1e12, speeds),
        policy,
        exact=exact,
    )


@pytest.mark.parametrize("speeds", [(1.0,) * 16, (1.0,) * 15 + (1.3,)], ids=["alike", "one slow"])
def test_only_what_needs_it_is_replayed(monkeypatch: pytest.MonkeyPatch, speeds: tuple[float, ...]) -> None:
    """Where workers end the passes together, the optimizer's waves are in closed form; the times are the replay's."""
    step = with_optimizer()
    exact = price(FSDP(), step, speeds, exact=True).price(step)
    replayed = noted_replays(monkeypatch)
    found = price(FSDP(), step, speeds, exact=False).price(step)
    near = 1e-12 * exact.duration
    np.testing.assert_allclose(found.begin, exact.begin, rtol=0, atol=near)
    np.testing.assert_allclose(found.end, exact.end, rtol=0, atol=near)
    assert replayed == [8]  # the tasks from 3 to 10


def test_sections_that_workers_leave_at_different_times_are_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one worker still sends then meets what another sends already: the whole step is replayed."""
    step = (*hsdp_step(), (ComputeOp(1e9, purpose="optimizer"),), *hsdp_step())
    speeds = tuple(1.0 + 0.05 * worker for worker in range(16))
    exact = price(FSDP(), step, speeds, exact=True).price(step)
    replayed = noted_replays(monkeypatch)
    found = price(FSDP(), step, speeds, exact=False).price(step)
    assert replayed[-1] == len(found.graph.tasks)
    np.testing.assert_allclose(found.end, exact.end, rtol=0, atol=1e-12 * exact.duration)

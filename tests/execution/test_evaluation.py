"""Three ways to the same times: the closed evaluation, the replay flow by flow, and the timeline of irregular programs.

The catalogues of networks, plans and policies are those of other tests: what joins them is held to these laws too.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simdist.communication.plans import collectives, collectives_named
from simdist.communication.trace import CollectiveOp, ComputeOp, SleepOp, StepOps
from simdist.execution.compute_model import ComputeModel
from simdist.execution.overlap import FSDP, NoOverlap, Overlap
from simdist.execution.pricing import StepPricer, StepTiming
from simdist.execution.replay import Replay
from simdist.execution.tasks import StepGraph, Task
from simdist.execution.timeline import Timeline
from simdist.network import Network, Star, Topology
from tests.execution.recorded_steps import POLICIES, SETUPS, recorded, suits, training_steps
from tests.execution.test_pricing import MIXED_STEPS
from tests.network.catalogue import SAMPLES

SMALL = {name: sample for name, sample in SAMPLES.items() if sample.workers <= 12}
#: ways in which bandwidth may vary with time, in the milliseconds that the steps here take
VARYING: dict[str, dict[str, Any]] = {
    "fixed": {},
    "jitter": {"jitter": {"sigma": 0.5, "every": "2ms"}},
    "common jitter": {"jitter": {"sigma": 0.5, "every": "1ms", "common": True}},
    "outage of all": {"outages": [{"start": "1ms", "duration": "2ms"}]},
    "outage of one": {"outages": [{"start": "1ms", "duration": "2ms", "link": "FIRST"}]},
}
FLOPS_PER_SECOND = 1e9
EPSILON = float(np.finfo(np.float64).eps)


class Scrambled(Overlap):
    """Any graph at all: each item is a task on one of a few streams, and comes after some of the earlier ones."""

    policy: str = "scrambled"
    seed: int
    streams: int

    def problem(self, shards: int, lockstep: bool) -> str | None:
        return None

    def graph(self, step: StepOps) -> StepGraph:
        draw = random.Random(self.seed)
        tasks: list[Task] = []
        for wave, ops in enumerate(step):
            for item, op in enumerate(ops):
                after = draw.sample(range(len(tasks)), min(len(tasks), draw.randrange(3)))
                tasks.append(Task((op,), ((wave, item),), str(draw.randrange(self.streams)), tuple(after)))
        return StepGraph(step, tuple(tasks))


ANY_POLICY = st.one_of(
    st.sampled_from(list(POLICIES.values())),
    st.builds(Scrambled, seed=st.integers(0, 999), streams=st.integers(1, 4)),
)


@st.composite
def meshes(draw: st.DrawFn, workers: int) -> tuple[int, int]:
    shards = draw(st.sampled_from([n for n in range(1, workers + 1) if workers % n == 0]))
    return workers // shards, shards


@st.composite
def slownesses(draw: st.DrawFn, workers: int) -> tuple[float, ...]:
    """Mostly equal workers; else one slow, or all different."""
    return draw(
        st.sampled_from(
            [
                (1.0,) * workers,
                (1.0,) * (workers - 1) + (2.5,),
                tuple(1 + worker / 7 for worker in range(workers)),
            ]
        )
    )


@st.composite
def lags(draw: st.DrawFn, workers: int) -> tuple[float, ...]:
    return draw(
        st.sampled_from(
            [
                (0.0,) * workers,
                (0.0,) * (workers - 1) + (1e-3,),
                tuple(1e-3 * worker / workers for worker in range(workers)),
            ]
        )
    )


def varied(topology: Topology, workers: int, way: str) -> Network:
    """A network of so many workers whose bandwidth varies in one of the ways of :data:`VARYING`."""
    changes = dict(VARYING[way])
    if way == "outage of one":
        first = topology.network(workers).links[0]
        changes["outages"] = [{**outage, "link": first} for outage in changes["outages"]]
    return type(topology).model_validate({**topology.model_dump(), **changes}).network(workers)


def assert_same_times(one: StepTiming, other: StepTiming, clock: float) -> None:
    """All times agree to 1e-12 of the step, and to the resolution of the clock by which bandwidths vary."""
    near = 1e-12 * one.duration + 16 * EPSILON * clock
    np.testing.assert_allclose(one.begin, other.begin, rtol=0, atol=near)
    np.testing.assert_allclose(one.end, other.end, rtol=0, atol=near)
    for name in ("finish", "duration", "advance", "lag_after"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=0, atol=2 * near)
    for name in ("compute_seconds", "hidden_comm_seconds"):  # sums of as many times as there are tasks
        assert getattr(one, name) == pytest.approx(getattr(other, name), abs=near * (2 + len(one.begin)))


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(
    data=st.data(),
    step=st.one_of(training_steps(), MIXED_STEPS),
    name=st.sampled_from(list(SMALL)),
    plan=st.sampled_from(collectives.names()),
    policy=ANY_POLICY,
    way=st.sampled_from(list(VARYING)),
    clock=st.sampled_from([0.0, 0.0015, 12345.678]),
)
def test_the_closed_evaluation_never_contradicts_the_replay(
    data: st.DataObject, step: StepOps, name: str, plan: str, policy: Overlap, way: str, clock: float
) -> None:
    workers = SMALL[name].workers
    network = varied(SMALL[name].topology, workers, way)
    mesh = data.draw(meshes(workers))
    compute = ComputeModel(FLOPS_PER_SECOND, data.draw(slownesses(workers)))
    lag = data.draw(lags(workers))
    fast, exact = (
        StepPricer(network, mesh, collectives_named(plan), compute, policy, exact=exact).price(step, lag, 1, clock)
        for exact in (False, True)
    )
    assert_same_times(fast, exact, clock if network.varies else 0.0)


@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("way", VARYING)
def test_on_recorded_steps(setup: str, way: str) -> None:
    step, mesh = recorded(setup), SETUPS[setup].mesh
    workers = mesh[0] * mesh[1]
    network = varied(Star(bandwidth=1e8), workers, way)
    compute = ComputeModel(FLOPS_PER_SECOND, (1.0,) * (workers - 1) + (1.7,))
    for policy in POLICIES.values():
        if suits(policy, mesh):
            fast, exact = (
                StepPricer(network, mesh, collectives_named("ring"), compute, policy, exact=exact).price(step)
                for exact in (False, True)
            )
            assert_same_times(fast, exact, 0.0)


def test_groups_that_begin_almost_together_late_in_a_run() -> None:
    """Two groups begin 50 ns apart, a million seconds into the run: apart is apart, whatever the clock shows."""
    network = varied(Star(bandwidth=1e8, latency=1e-6), 4, "outage of all")
    step = ((CollectiveOp("all_reduce", "shards", "optimizer", "w", "fp32", 1000),),)
    compute, lag, clock = ComputeModel(FLOPS_PER_SECOND, (1.0,) * 4), (0.0, 0.0, 5e-8, 5e-8), 1e6
    fast, exact = (
        StepPricer(network, (2, 2), collectives_named("ring"), compute, exact=exact).price(step, lag, 1, clock)
        for exact in (False, True)
    )
    assert_same_times(fast, exact, clock)


@pytest.mark.parametrize("setup", ["ddp 4x1 adamw", "fsdp 1x4 adamw", "fsdp 1x4 orth_dion"])
def test_one_communicator_at_a_time_needs_no_replay(setup: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the laws above speak of the closed evaluation, and re-timing stays fast."""
    mesh = SETUPS[setup].mesh
    compute = ComputeModel(FLOPS_PER_SECOND, (1.0,) * 4)
    monkeypatch.setattr(Replay, "run", lambda *_: pytest.fail("was replayed"))
    for policy in POLICIES.values():
        if suits(policy, mesh):
            StepPricer(Star().network(4), mesh, collectives_named("ring"), compute, policy).price(recorded(setup))


def test_communicators_that_meet_on_a_link_are_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """HSDP's reductions over replicas run beside the gathers of shards, out of the same host."""
    price = StepPricer(
        Star(bandwidth=1e7).network(4), (2, 2), collectives_named("ring"), ComputeModel(1e9, (1.0,) * 4), FSDP()
    ).price
    monkeypatch.setattr(Replay, "run", lambda *_: pytest.fail("was replayed"))
    with pytest.raises(BaseException, match="was replayed"):
        price(recorded("hsdp 2x2 powersgd"))


# -- the third implementation -----------------------------------------------------------------------------------------


def check_against_the_timeline(
    step: StepOps, network: Network, mesh: tuple[int, int], plan: str, compute: ComputeModel, lag: tuple[float, ...]
) -> None:
    """Hand the waves of every worker to a timeline one by one, and compare the times of every item."""
    timing = StepPricer(network, mesh, collectives_named(plan), compute, NoOverlap()).price(step, lag)
    timeline = Timeline(network, mesh, collectives_named(plan), compute, lag)
    given = [0] * network.workers
    awake = list(range(network.workers))
    while awake:
        for worker in awake:
            if given[worker] < len(step):
                timeline.submit(worker, step[given[worker]])
                given[worker] += 1
        awake = [woken.worker for woken in timeline.advance()]
    task_of = {place: number for number, task in enumerate(timing.graph.tasks) for place in task.places}
    seen = 0
    for event in timeline.events:
        for worker, wave, item in event.places:
            number = task_of[wave, item]
            near = 1e-12 * timing.duration
            assert timing.begin[number, worker] == pytest.approx(event.start, abs=near)
            assert timing.end[number, worker] == pytest.approx(event.end, abs=near)
            seen += 1
    assert seen == network.workers * sum(map(len, step))
    finish = [timeline.clock(worker) for worker in range(network.workers)]
    np.testing.assert_allclose(timing.finish, finish, rtol=0, atol=1e-12 * timing.duration)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(
    data=st.data(),
    step=st.one_of(training_steps(), MIXED_STEPS),
    name=st.sampled_from(list(SMALL)),
    plan=st.sampled_from(["ring", "direct", "gloo", "two_level"]),
    way=st.sampled_from(list(VARYING)),
)
def test_without_overlap_a_step_is_what_the_timeline_makes_of_its_waves(
    data: st.DataObject, step: StepOps, name: str, plan: str, way: str
) -> None:
    workers = SMALL[name].workers
    network = varied(SMALL[name].topology, workers, way)
    compute = ComputeModel(FLOPS_PER_SECOND, data.draw(slownesses(workers)))
    check_against_the_timeline(step, network, data.draw(meshes(workers)), plan, compute, data.draw(lags(workers)))


@pytest.mark.parametrize("setup", SETUPS)
def test_recorded_steps_without_overlap_on_the_timeline(setup: str) -> None:
    mesh = SETUPS[setup].mesh
    workers = mesh[0] * mesh[1]
    compute = ComputeModel(FLOPS_PER_SECOND, (1.0,) * (workers - 1) + (1.7,), memory_bytes_per_second=1e9)
    lag = (2e-4,) + (0.0,) * (workers - 1)
    check_against_the_timeline(recorded(setup), Star(bandwidth=1e8).network(workers), mesh, "ring", compute, lag)


def test_sleeps_and_computing_of_one_wave() -> None:
    """A wave's computing adds up on one stream; its sleeps run beside each other and beside it."""
    step: StepOps = ((SleepOp(0.3), ComputeOp(1e8), SleepOp(0.2), ComputeOp(1e8)), (SleepOp(0.1),))
    compute = ComputeModel(FLOPS_PER_SECOND, (1.0, 3.0))
    check_against_the_timeline(step, Star().network(2), (1, 2), "ring", compute, (0.0, 0.0))
    timing = StepPricer(Star().network(2), (1, 2), collectives_named("ring"), compute).price(step)
    assert timing.finish == pytest.approx((0.4, 0.7), rel=1e-12)

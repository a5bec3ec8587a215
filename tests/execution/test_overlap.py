"""Overlap policies: what every one of them keeps, what they may gain, and timelines worked out by hand."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simdist.communication.ledger import Ledger
from simdist.communication.plans import Collectives, Mpi, Ring
from simdist.communication.trace import CollectiveOp, ComputeOp, StepOps
from simdist.execution.compute_model import ComputeModel
from simdist.execution.overlap import DDP, FSDP, NoOverlap, Overlap
from simdist.execution.pricing import StepPricer, StepTiming
from simdist.execution.tasks import StepGraph
from simdist.network import Star, Topology, TwoLevel
from simdist.program import MeshShape
from tests.execution.recorded_steps import CASES, POLICIES, SETUPS, backward_only, recorded, suits, training_steps

MESHES = [(4, 1), (1, 4), (2, 2), (2, 4)]
FLOPS_PER_SECOND = 1e9
each_case = pytest.mark.parametrize(("setup", "policy"), CASES)
each_policy = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)


def pricer(
    policy: Overlap,
    mesh: tuple[int, int],
    topology: Topology | None = None,
    plan: Collectives | None = None,
    flops_per_second: float = FLOPS_PER_SECOND,
) -> StepPricer:
    """Workers that are all alike, by default on a star whose speed makes neither traffic nor computing negligible."""
    workers = mesh[0] * mesh[1]
    network = (topology or Star(bandwidth=1e8, latency=1e-5)).network(workers)
    return StepPricer(network, mesh, plan or Ring(), ComputeModel.of_speeds([flops_per_second] * workers), policy)


# -- what a policy keeps ----------------------------------------------------------------------------------------------


def check_every_op_runs_once(step: StepOps, graph: StepGraph) -> None:
    places = [place for task in graph.tasks for place in task.places]
    assert sorted(places) == [(wave, item) for wave, ops in enumerate(step) for item in range(len(ops))]
    for number, task in enumerate(graph.tasks):
        assert task.ops == tuple(step[wave][item] for wave, item in task.places)
        assert all(0 <= earlier < number for earlier in task.after)


def check_order(step: StepOps, graph: StepGraph) -> None:
    """Every task comes, by waiting for it or by their stream, after all tasks whose results it needs."""
    tasks_of: dict[int, set[int]] = {wave: set() for wave in range(len(step))}
    before: list[set[int]] = []
    last: dict[str, int] = {}
    for number, task in enumerate(graph.tasks):
        direct = {*task.after, *([last[task.stream]] if task.stream in last else [])}
        before.append(direct.union(*(before[earlier] for earlier in direct)))
        last[task.stream] = number
        for wave, _ in task.places:
            tasks_of[wave].add(number)
    for earlier, later in needs(step):
        for number in tasks_of[later]:
            assert tasks_of[earlier] <= before[number] | {number}, (step[earlier], step[later])


def needs(step: StepOps) -> list[tuple[int, int]]:
    """Pairs of waves of which the second uses what the first made, from the labels alone."""
    found: list[tuple[int, int]] = []
    gathered: dict[str, list[int]] = {}
    last_pass: int | None = None
    chain: list[int] = []  # the backward pass, and the reductions since
    for number, wave in enumerate(step):
        purposes = {op.purpose for op in wave if isinstance(op, (CollectiveOp, ComputeOp))}
        tensor = next((op.tensor for op in wave if isinstance(op, (CollectiveOp, ComputeOp))), "")
        if purposes == {"param_gather"}:
            gathered.setdefault(tensor, []).append(number)
        elif purposes <= {"forward", "backward"}:
            found += [(gather, number) for gather in gathered.pop(tensor, [])]
            found += [(last_pass, number)] if last_pass is not None else []
            last_pass, chain = number, [number]
        elif purposes == {"grad_reduce"}:
            found.append((chain[-1], number))
            chain.append(number)
        else:  # the optimizer, measurements: after all before, before all after
            found += [(earlier, number) for earlier in range(number)]
            found += [(number, later) for later in range(number + 1, len(step))]
    return found


@each_case
def test_recorded_steps_run_whole_and_in_order(setup: str, policy: str) -> None:
    step = recorded(setup)
    graph = POLICIES[policy].graph(step)
    check_every_op_runs_once(step, graph)
    check_order(step, graph)


@each_policy
@settings(max_examples=30)
@given(step=training_steps())
def test_random_steps_run_whole_and_in_order(policy: Overlap, step: StepOps) -> None:
    graph = policy.graph(step)
    check_every_op_runs_once(step, graph)
    check_order(step, graph)


ANY_OP = st.one_of(
    st.builds(ComputeOp, st.just(1e6), purpose=st.sampled_from(["forward", "backward", "grad_reduce", "optimizer"])),
    st.builds(
        CollectiveOp,
        st.sampled_from(["all_gather", "all_reduce"]),
        st.sampled_from(["shards", "replicas"]),
        st.sampled_from(["param_gather", "grad_reduce", "optimizer", "diagnostic"]),
        st.just("w"),
        st.just("fp32"),
        st.just(1000),
    ),
)


@each_policy
@settings(max_examples=30)
@given(step=st.lists(st.lists(ANY_OP, max_size=3).map(tuple), max_size=12).map(tuple), end=st.integers(0, 12))
def test_steps_of_any_form_run_whole(policy: Overlap, step: StepOps, end: int) -> None:
    """Whatever a schedule says, in whatever order; and cut off anywhere, as paced runs hand in their steps."""
    check_every_op_runs_once(step, policy.graph(step))
    check_every_op_runs_once(step[:end], policy.graph(step[:end]))


@each_case
def test_bytes_do_not_depend_on_the_policy(setup: str, policy: str) -> None:
    step, mesh = recorded(setup), SETUPS[setup].mesh
    hashes = set()
    for one in (POLICIES[policy], NoOverlap()):
        ledger = Ledger(MeshShape(*mesh), pricer(one, mesh).plans)
        ledger.add_step(
            1, step, itertools.repeat((0.0, 0.0), sum(isinstance(op, CollectiveOp) for w in step for op in w))
        )
        hashes.add((ledger.sha256(), ledger.total_bytes))
    assert len(hashes) == 1


def test_a_profile_sees_the_bucket_and_so_may_choose_another_plan() -> None:
    """The exception to the law above: MPI reduces up to 2 KiB in another way, and a bucket is one message."""
    step = backward_only([1024] * 4)
    names = {
        one.policy: {plan.name for plans in pricer(one, (4, 1), plan=Mpi()).plans(step) for plan in plans}
        for one in (NoOverlap(), DDP())
    }
    assert names == {"none": {"recursive_doubling"}, "ddp": {"halving_doubling"}}


# -- what a policy may gain -------------------------------------------------------------------------------------------

NETWORKS = {
    "star": Star(bandwidth=1e8, latency=1e-5),
    "star, slow": Star(bandwidth=1e6, latency=0),
    "star, far": Star(bandwidth=1e10, latency=1e-2),
    "star, half duplex": Star(bandwidth=1e8, duplex="half"),
    "two-level": TwoLevel(island_size=2, bandwidth=1e7, latency=1e-4, island_bandwidth=1e9),
}


@each_case
def test_overlap_never_slows_recorded_steps_down(setup: str, policy: str) -> None:
    """With equal workers something is always under way, and all at once is no slower than one after the other.

    Proof where collectives do not meet on a link: a step takes at most the sum of its tasks' times, which is what it
    takes without overlap if no wave has two kinds of items: the graph always has something to go on with. Where they
    meet, that is what is observed, here and on random steps; a proof is known for collectives of one flow at a time (of
    the k flows on the link that fills first, each has at least 1 / k of what it has alone). A step for which the law is
    false: the next test.
    """
    step, mesh = recorded(setup), SETUPS[setup].mesh
    for name, network in NETWORKS.items():
        overlapped, plain = (pricer(one, mesh, network).price(step).duration for one in (POLICIES[policy], NoOverlap()))
        assert overlapped <= plain * (1 + 1e-12), name


@each_policy
@settings(max_examples=20)
@given(step=training_steps(), mesh=st.sampled_from(MESHES), name=st.sampled_from(list(NETWORKS)))
def test_overlap_never_slows_random_steps_down(
    policy: Overlap, step: StepOps, mesh: tuple[int, int], name: str
) -> None:
    if suits(policy, mesh):
        overlapped, plain = (pricer(one, mesh, NETWORKS[name]).price(step).duration for one in (policy, NoOverlap()))
        assert overlapped <= plain * (1 + 1e-12)


def test_kinds_of_one_wave_that_share_a_communicator_may_be_slower() -> None:
    """A counterexample: awaited together they pay their latency together; on one communicator, one after the other."""
    backward = ComputeOp(0.0, purpose="backward", tensor="w")
    both = tuple(CollectiveOp(op, "shards", "grad_reduce", "w", "fp32", 0) for op in ("reduce_scatter", "all_gather"))
    far = Star(latency=1e-2)
    times = [pricer(one, (1, 2), far).price(((backward,), both)).duration for one in (NoOverlap(), FSDP())]
    assert times == pytest.approx([2e-2, 4e-2], rel=1e-12)


def alone(graph: StepGraph, mesh: tuple[int, int]) -> dict[str, float]:
    """How long each stream would be busy if nothing else were under way, on a star whose groups share no link."""
    price = pricer(NoOverlap(), mesh).price
    busy: dict[str, float] = {}
    for task in graph.tasks:
        busy[task.stream] = busy.get(task.stream, 0.0) + price((task.ops,)).duration
    return busy


@each_case
def test_no_stream_is_faster_than_its_work(setup: str, policy: str) -> None:
    step, mesh = recorded(setup), SETUPS[setup].mesh
    price = pricer(POLICIES[policy], mesh)
    timing = price.price(step)
    for stream, seconds in alone(timing.graph, mesh).items():
        assert timing.duration >= seconds * (1 - 1e-12), stream


@each_case
def test_infinite_bandwidth_without_latency_leaves_computing(setup: str, policy: str) -> None:
    """What is computed for compression may run beside the backward passes; all else takes its own time."""
    step, mesh = recorded(setup), SETUPS[setup].mesh
    timing = pricer(POLICIES[policy], mesh, Star(bandwidth=1e30, latency=0)).price(step)
    own = {True: 0.0, False: 0.0}
    for op in (op for wave in step for op in wave if isinstance(op, ComputeOp)):
        own[op.purpose == "grad_reduce"] += op.flops / FLOPS_PER_SECOND
    assert timing.compute_seconds == pytest.approx(timing.duration, rel=1e-12)
    assert own[False] * (1 - 1e-12) <= timing.duration <= (own[False] + own[True]) * (1 + 1e-12)
    if policy == "none":
        assert timing.duration == pytest.approx(own[False] + own[True], rel=1e-12)


@each_case
def test_computing_at_no_time_leaves_communication(setup: str, policy: str) -> None:
    step, mesh = recorded(setup), SETUPS[setup].mesh
    silent = tuple(tuple(replace(op, flops=0.0) if isinstance(op, ComputeOp) else op for op in wave) for wave in step)
    timing = pricer(POLICIES[policy], mesh).price(silent)
    assert timing.compute_seconds == timing.hidden_comm_seconds == 0
    assert timing.duration == pytest.approx(lengths(timing, computing=False)[0], rel=1e-12)
    assert timing.duration == pytest.approx(pricer(POLICIES[policy], mesh, flops_per_second=1e30).price(step).duration)


# -- compute, exposed and hidden --------------------------------------------------------------------------------------


def lengths(timing: StepTiming, computing: bool, also: bool | None = None) -> list[float]:
    """Per worker the seconds in which it computes or (``computing`` False) communicates; ``also``: either of both."""
    return [
        length(
            [
                (begin, end)
                for task, begin, end in zip(
                    timing.graph.tasks, timing.begin[:, worker], timing.end[:, worker], strict=True
                )
                if task.computes in (computing, also) and not task.free
            ]
        )
        for worker in range(timing.begin.shape[1])
    ]


def length(intervals: list[tuple[float, float]]) -> float:
    """The length of a union of intervals, instant by instant."""
    instants = sorted({time for interval in intervals for time in interval})
    return sum(
        after - before
        for before, after in itertools.pairwise(instants)
        if any(begin <= before and after <= end for begin, end in intervals)
    )


def check_bookkeeping(timing: StepTiming) -> float:
    """What is computed and what is hidden, by inclusion and exclusion; return the sum of computed and exposed."""
    near = 1e-9 * timing.duration + 1e-18
    computing, talking = (float(np.mean(lengths(timing, kind))) for kind in (True, False))
    either = float(np.mean(lengths(timing, True, False)))
    assert timing.compute_seconds == pytest.approx(computing, abs=near)
    assert timing.hidden_comm_seconds == pytest.approx(computing + talking - either, abs=near)
    assert timing.hidden_comm_seconds <= min(computing, talking) + near
    return timing.compute_seconds + talking - timing.hidden_comm_seconds


@each_case
def test_recorded_steps_split_into_computing_and_exposed_communication(setup: str, policy: str) -> None:
    """Workers are equal, so none of them idles: what is not computing is exposed communication,."""
    timing = pricer(POLICIES[policy], SETUPS[setup].mesh).price(recorded(setup))
    assert check_bookkeeping(timing) == pytest.approx(timing.duration, rel=1e-9)


@each_policy
@settings(max_examples=25)
@given(step=training_steps(), mesh=st.sampled_from(MESHES))
def test_random_steps_split_into_computing_and_exposed_communication(
    policy: Overlap, step: StepOps, mesh: tuple[int, int]
) -> None:
    """Payloads here do not divide evenly, so that groups may finish apart and then wait for each other."""
    if suits(policy, mesh):
        timing = pricer(policy, mesh).price(step)
        assert check_bookkeeping(timing) <= timing.duration * (1 + 1e-9)


def test_nothing_is_hidden_without_overlap() -> None:
    for setup, case in SETUPS.items():
        timing = pricer(NoOverlap(), case.mesh).price(recorded(setup))
        assert timing.hidden_comm_seconds <= 1e-12 * timing.duration, setup


def test_overlap_hides_something() -> None:
    """So that the laws above do not hold for want of overlap."""
    for setup, policy in (("ddp 4x1 adamw", "ddp, small buckets"), ("fsdp 1x4 adamw", "fsdp")):
        timing = pricer(POLICIES[policy], SETUPS[setup].mesh).price(recorded(setup))
        assert timing.hidden_comm_seconds > 0.1 * timing.compute_seconds

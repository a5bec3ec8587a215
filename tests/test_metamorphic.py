"""What must happen to the time of a real recorded step when the network, the bytes or the workers change.

Steps and policies come from catalogues, so that whatever joins them is held to these laws too. A law that is false in
general stands beside the counterexample.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from simdist.communication.ledger import Ledger
from simdist.communication.plans import Collectives, collectives_named
from simdist.communication.trace import CollectiveOp, ComputeOp, StepOps
from simdist.execution.compute_model import ComputeModel
from simdist.execution.overlap import NoOverlap, Overlap
from simdist.execution.pricing import StepPricer, StepTiming
from simdist.execution.tasks import StepGraph, Task
from simdist.network import FullMesh, Network, Ring, Star, Topology, TwoLevel
from simdist.network.sharing import Floats
from simdist.program import MeshShape
from tests.execution.recorded_steps import CASES, POLICIES, SETUPS, recorded, suits

NETWORKS: dict[str, Topology] = {
    "star": Star(bandwidth=1e8, latency=1e-5),
    "star, half duplex": Star(bandwidth=1e8, duplex="half"),
    "ring": Ring(bandwidth=1e8, latency=1e-5),
    "two-level": TwoLevel(island_size=2, bandwidth=1e7, latency=1e-4, island_bandwidth=1e9),
}
COMPUTE = ComputeModel(1e9, (1.0,), memory_bytes_per_second=1e10)
each_case = pytest.mark.parametrize(("setup", "policy"), CASES)
each_network = pytest.mark.parametrize("topology", NETWORKS.values(), ids=NETWORKS)


def changed(topology: Topology, **changes: Any) -> Topology:
    return type(topology).model_validate({**topology.model_dump(), **changes})


def pricer(
    mesh: tuple[int, int],
    topology: Topology,
    policy: Overlap | None = None,
    plan: str | Collectives = "ring",
    compute: ComputeModel = COMPUTE,
) -> StepPricer:
    workers = mesh[0] * mesh[1]
    slowness = compute.slowness * workers if compute.workers == 1 else compute.slowness
    chosen = collectives_named(plan) if isinstance(plan, str) else plan
    return StepPricer(topology.network(workers), mesh, chosen, replace(compute, slowness=slowness), policy)


def duration(setup: str, policy: str, topology: Topology, step: StepOps | None = None, plan: str = "ring") -> float:
    price = pricer(SETUPS[setup].mesh, topology, POLICIES[policy], plan).price
    return price(recorded(setup) if step is None else step).duration


def scaled_payloads(step: StepOps, share: float) -> StepOps:
    return tuple(
        tuple(
            replace(op, payload_bytes=int(op.payload_bytes * share)) if isinstance(op, CollectiveOp) else op
            for op in ops
        )
        for ops in step
    )


# -- more bandwidth, fewer bytes --------------------------------------------------------------------------------------


@each_network
@each_case
def test_more_bandwidth_is_never_slower(setup: str, policy: str, topology: Topology) -> None:
    rates = [topology.bandwidth * factor for factor in (1, 1.7, 10, 1000)]
    times = [duration(setup, policy, changed(topology, bandwidth=rate)) for rate in rates]
    assert all(faster <= slower * (1 + 1e-12) for slower, faster in itertools.pairwise(times))
    assert times[-1] < times[0]


@each_network
@each_case
def test_fewer_bytes_are_never_slower(setup: str, policy: str, topology: Topology) -> None:
    step = recorded(setup)
    times = [duration(setup, policy, topology, scaled_payloads(step, share)) for share in (1, 0.5, 0.1, 0)]
    assert all(fewer <= more * (1 + 1e-12) for more, fewer in itertools.pairwise(times))
    assert times[-1] < times[0]


def test_fewer_bytes_may_be_slower_where_a_library_changes_its_plan() -> None:
    """A counterexample: NCCL's, MPI's thresholds are fixed numbers, and the plan below one need not suit a network.

    MPI reduces up to 2 KiB by recursive doubling, log2(n) rounds of all bytes, and more by halving-doubling.
    """
    slow = Star(bandwidth=1e4, latency=0)
    times = [
        pricer((8, 1), slow, plan="mpi")
        .price(((CollectiveOp("all_reduce", "replicas", "grad_reduce", "w", "fp32", size),),))
        .duration
        for size in (2048, 2056)
    ]
    assert times[0] > 1.5 * times[1]


def test_more_bandwidth_may_be_slower_where_traffic_meets() -> None:
    """A counterexample (in the manner of Graham 1969), two workers on a star whose links carry S bytes in S seconds.

    E (8 s) precedes 3 s of computing and then D; beside them, 10 s of computing precede C (3 s) and 100 s more. So D
    starts at 11, and takes half of the link from C, which ends at 11 + 2 (13 - 11) = 15. At 8/7 of the bandwidth E
    takes 7 s, D starts at 10 with C, and C ends at 10 + 2 * 2.625 = 15.25. Only C matters: 115 s become 115.25 s.
    """
    tasks = (
        Task((gathered("E", 16_000),), ((0, 0),), "one", ()),
        Task((ComputeOp(3.0),), ((1, 0),), "computing", (0,)),
        Task((ComputeOp(10.0),), ((2, 0),), "more computing", ()),
        Task((gathered("C", 6_000),), ((3, 0),), "other", (2,)),
        Task((gathered("D", 16_000),), ((4, 0),), "one", (1,)),
        Task((ComputeOp(100.0),), ((5, 0),), "more computing", (3,)),
    )
    step = tuple(task.ops for task in tasks)
    times = [
        pricer((1, 2), Star(bandwidth=rate, latency=0), Given(tasks=tasks), compute=ComputeModel(1.0, (1.0,)))
        .price(step)
        .duration
        for rate in (8e3, 8e3 * 8 / 7)
    ]
    assert times == pytest.approx([115, 115.25], rel=1e-12)


class Given(Overlap):
    """A graph written down by hand."""

    policy: str = "given"
    tasks: tuple[Any, ...]

    def problem(self, shards: int, lockstep: bool) -> str | None:
        return None

    def graph(self, step: StepOps) -> StepGraph:
        return StepGraph(step, self.tasks)


def gathered(name: str, size: int) -> CollectiveOp:
    return CollectiveOp("all_gather", "workers", "optimizer", name, "fp32", size)


# -- who sits where ---------------------------------------------------------------------------------------------------


@each_case
def test_permuting_workers_on_a_symmetric_topology_changes_nothing(setup: str, policy: str) -> None:
    """A star and a full mesh are the same from every host, a ring when it is turned, islands when they are swapped.

    The ring only for neighbours: between opposite hosts there are two shortest paths, and a turn may change which one
    the tie falls to.
    """
    mesh = SETUPS[setup].mesh
    count = mesh[0] * mesh[1]
    mixed = [(3 * worker + 2) % count for worker in range(count)] if count % 3 else list(range(count))[::-1]
    turned = [(worker + 1) % count for worker in range(count)]
    swapped = [(worker + 2) % count for worker in range(count)]
    symmetries = {"star": mixed, "star, half duplex": mixed, "two-level": swapped}
    for name, places in (symmetries | ({"ring": turned} if 1 in mesh else {})).items():
        moved = changed(NETWORKS[name], placement=places)
        assert duration(setup, policy, moved) == pytest.approx(duration(setup, policy, NETWORKS[name]), rel=1e-11)
    mesh_of_all = FullMesh(bandwidth=1e8)
    moved = changed(mesh_of_all, placement=mixed)
    assert duration(setup, policy, moved) == pytest.approx(duration(setup, policy, mesh_of_all), rel=1e-11)


def test_permuting_slow_workers_along_with_everything_changes_nothing() -> None:
    """Which replica a slow worker is in does not matter."""
    step, slowness = recorded("hsdp 2x2 powersgd"), (3.0, 1.0, 1.0, 1.0)
    times = []
    for turn in range(4):
        compute = replace(COMPUTE, slowness=tuple(np.roll(slowness, turn).tolist()))
        timing = pricer((2, 2), NETWORKS["star"], NoOverlap(), compute=compute).price(step)
        times.append((timing.duration, timing.compute_seconds))
    assert times == pytest.approx(np.array([times[0]] * 4), rel=1e-11)


def test_the_topology_matters() -> None:
    """One step, one bandwidth at every host: from twice to many times as slow, by where the bytes must go."""
    times = {
        name: duration("hsdp 2x4 orth_dion", "fsdp", topology)
        for name, topology in {
            "full mesh": FullMesh(bandwidth=1e8, latency=1e-5),
            "star": Star(bandwidth=1e8, latency=1e-5),
            "packed": TwoLevel(island_size=4, bandwidth=1e8, island_bandwidth=1e8, latency=1e-5, island_latency=1e-5),
            "spread": TwoLevel(
                island_size=4,
                bandwidth=1e8,
                island_bandwidth=1e8,
                latency=1e-5,
                island_latency=1e-5,
                placement="spread",
            ),
        }.items()
    }
    assert times["full mesh"] < times["star"] < times["packed"] < times["spread"]
    assert times["spread"] > 1.5 * times["star"]


# -- time -------------------------------------------------------------------------------------------------------------


@each_case
@pytest.mark.parametrize("factor", [1e-3, 7.0])
def test_time_has_no_unit(setup: str, policy: str, factor: float) -> None:
    """All rates divided and all latencies multiplied by a factor: everything takes that many times as long."""
    mesh, step = SETUPS[setup].mesh, recorded(setup)
    topology = NETWORKS["two-level"]
    assert isinstance(topology, TwoLevel)
    slower = changed(
        topology,
        bandwidth=topology.bandwidth / factor,
        island_bandwidth=topology.island_bandwidth / factor,
        latency=topology.latency * factor,
        island_latency=topology.island_latency * factor,
    )
    compute = replace(COMPUTE, slowness=(factor,))
    one = pricer(mesh, topology, POLICIES[policy]).price(step)
    other = pricer(mesh, slower, POLICIES[policy], compute=compute).price(step)
    assert other.duration == pytest.approx(one.duration * factor, rel=1e-10)
    assert other.hidden_comm_seconds == pytest.approx(one.hidden_comm_seconds * factor, rel=1e-8, abs=1e-12 * factor)
    np.testing.assert_allclose(other.end, one.end * factor, rtol=1e-10)


# -- links ------------------------------------------------------------------------------------------------------------


def watched(price: StepPricer, step: StepOps, workers: int) -> list[tuple[float, Floats]]:
    used: list[tuple[float, Floats]] = []
    price.watched(step, lambda time, rates: used.append((time, rates)), (0.0,) * workers, 1, 0.0)
    return used


def carried(price: StepPricer, network: Network, timing: StepTiming) -> Floats:
    """The bits that each link has to carry: every message of every task, on every link of its route."""
    bits = np.zeros(len(network.links))
    for task in timing.graph.tasks:
        op = task.collective
        if op is None or task.free:
            continue
        groups = price.planner.groups.by_axis[op.axis]
        for group, plan in zip(groups, price.planner.plans(op.axis, op.op, task.payload_bytes, op.root), strict=True):
            for transfers, repeat in plan.rounds(op.op, task.payload_bytes, len(group), op.root):
                for source, target, size in transfers:
                    bits[list(network.route(group[source], group[target]).links)] += 8 * size * repeat
    return bits


@each_case
@pytest.mark.parametrize("name", NETWORKS)
def test_links_carry_every_byte_once_and_never_more_than_they_can(setup: str, policy: str, name: str) -> None:
    mesh, step = SETUPS[setup].mesh, recorded(setup)
    workers = mesh[0] * mesh[1]
    network = NETWORKS[name].network(workers)
    price = pricer(mesh, NETWORKS[name], POLICIES[policy])
    used = watched(price, step, workers)
    integral = np.zeros(len(network.links))
    for (start, rates), (end, _) in itertools.pairwise(used):
        assert end >= start
        if end > start:
            assert (rates <= network.capacities * (1 + 1e-9)).all()
        integral += rates * (end - start)
    assert not used[-1][1].any()
    expected = carried(price, network, price.price(step))
    np.testing.assert_allclose(integral, expected, rtol=1e-9, atol=1e-3)
    if name == "star":  # every byte leaves a host and arrives at one
        booked = Ledger(MeshShape(*mesh), price.plans).step_bytes(step)
        assert integral.sum() == pytest.approx(2 * 8 * booked, rel=1e-9)


# -- superposition ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setup", [name for name, setup in SETUPS.items() if setup.mesh == (1, 4)])
@pytest.mark.parametrize("topology", ["star", "star, half duplex", "islands"])
def test_a_replica_that_shares_no_link_changes_nothing(setup: str, topology: str) -> None:
    """The shards of two replicas train as if alone, but for what crosses between replicas: here nothing does."""
    network = TwoLevel(island_size=4, island_bandwidth=1e8) if topology == "islands" else NETWORKS[topology]
    step = tuple(
        tuple(op for op in ops if not isinstance(op, CollectiveOp) or op.axis == "shards") for ops in recorded(setup)
    )
    for policy in POLICIES.values():
        if suits(policy, (1, 4)):
            one, two = (pricer((replicas, 4), network, policy).price(step) for replicas in (1, 2))
            np.testing.assert_allclose(two.end, np.hstack([one.end, one.end]), rtol=1e-12)


def test_replicas_that_share_an_uplink_do_slow_each_other() -> None:
    """So that the law above can fail."""
    spread = TwoLevel(island_size=4, bandwidth=1e7, island_bandwidth=1e8, placement="spread")
    step = ((CollectiveOp("all_gather", "shards", "param_gather", "w", "fp32", 10**5),),)
    one, two = (pricer((replicas, 4), spread).price(step).duration for replicas in (1, 2))
    assert two > 1.5 * one


# -- plans ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setup", [name for name, setup in SETUPS.items() if 1 in setup.mesh])
@each_network
def test_auto_is_never_slower_than_a_plan_it_chooses_from(setup: str, topology: Topology) -> None:
    """One group, one collective at a time, as it prices them; see tests/execution/test_planning.py for what else."""
    auto = duration(setup, "none", topology, plan="auto")
    for plan in ("ring", "two_level", "halving_doubling", "recursive_doubling", "double_binary_tree", "direct"):
        assert auto <= duration(setup, "none", topology, plan=plan) * (1 + 1e-12), plan

"""One worker, group and message for all that a step cannot tell apart: the replay's times are the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from simdist.communication.plans import collectives_named
from simdist.communication.trace import CollectiveOp, ComputeOp, StepOps
from simdist.errors import RunError
from simdist.execution.evaluation import TaskTimes
from simdist.execution.overlap import FSDP
from simdist.execution.planning import Planner
from simdist.execution.replay import Replay
from simdist.execution.tasks import StepGraph
from simdist.network import FatTree, Line, RailOptimised, Star, Topology, TwoLevel

TOPOLOGIES: dict[str, Topology] = {
    "star": Star(bandwidth=1e8),
    "star, shared hosts": Star(bandwidth=1e8, workers_per_host=4, host_bandwidth=1e9),
    "star, half duplex": Star(bandwidth=1e8, duplex="half"),
    "two-level": TwoLevel(island_size=4, bandwidth=1e8, island_bandwidth=1e9),
    "rail-optimised": RailOptimised(bandwidth=1e8, server_size=4, server_bandwidth=1e9),
    "fat-tree": FatTree(bandwidth=1e8),
    "line": Line(bandwidth=1e8),
}


def step(units: int = 3, payload: int = 160_000) -> StepOps:
    """A step of HSDP whose reductions over replicas run beside the gathers of shards."""
    waves: list[tuple[CollectiveOp | ComputeOp, ...]] = []
    for unit in range(units):
        waves.append((CollectiveOp("all_gather", "shards", "param_gather", f"u{unit}", "fp32", payload),))
        waves.append((ComputeOp(1e9, purpose="backward", tensor=f"u{unit}"),))
        waves.append((CollectiveOp("reduce_scatter", "shards", "grad_reduce", f"u{unit}", "fp32", payload),))
        waves.append((CollectiveOp("all_reduce", "replicas", "grad_reduce", f"u{unit}", "fp32", payload // 4),))
    return tuple(waves)


def graph(payload: int = 160_000) -> StepGraph:
    return FSDP().graph(step(payload=payload))


def both(
    topology: Topology, plan: str, mesh: tuple[int, int], payload: int, slow: dict[int, float] | None = None
) -> tuple[TaskTimes, TaskTimes, Replay]:
    """The times of a replay that lumps and of one that does not, and the first."""
    workers = mesh[0] * mesh[1]
    network, own = topology.network(workers), graph(payload)
    planner = Planner(network, mesh, collectives_named(plan))
    each = np.array([(slow or {}).get(worker, 1.0) for worker in range(workers)])
    seconds = np.array([1e-3 if task.computes else 0.0 for task in own.tasks])[:, None] * each
    lumped = Replay(own, network, planner, seconds, np.zeros(workers), lump=True)
    plain = Replay(own, network, planner, seconds, np.zeros(workers))
    return lumped.run(), plain.run(), lumped


@pytest.mark.parametrize("payload", [160_000, 160_013])
@pytest.mark.parametrize("plan", ["ring", "direct", "gloo", "double_binary_tree"])
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_the_times_are_those_of_all(name: str, plan: str, payload: int) -> None:
    assert_same(*both(TOPOLOGIES[name], plan, (4, 4), payload)[:2])


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_the_times_are_those_of_all_where_a_replica_is_slow(name: str) -> None:
    assert_same(*both(TOPOLOGIES[name], "ring", (4, 4), 160_000, dict.fromkeys(range(4, 8), 1.5))[:2])


def assert_same(found: TaskTimes, expected: TaskTimes) -> None:
    near = 1e-12 * expected.finish.max()
    for column in ("begin", "end", "finish"):
        np.testing.assert_allclose(getattr(found, column), getattr(expected, column), rtol=0, atol=near)


def test_on_a_star_one_worker_stands_for_all() -> None:
    """4 x 8 workers, equal chunks: one class of workers, and one of messages for each axis."""
    *_, replay = both(Star(bandwidth=1e8), "ring", (4, 8), 160_000)
    assert replay._like is not None
    assert len(replay._like.first) == 1
    assert len(replay._like.messages) == 2
    assert replay._like.sharing.capacities.shape == (1,)


def test_unequal_chunks_tell_messages_apart_but_not_workers() -> None:
    """The byte that is left goes around the ring of four shards; all of a replica see the same rounds."""
    *_, replay = both(Star(bandwidth=1e8), "ring", (4, 4), 160_001 * 4)
    assert replay._like is not None
    assert len(replay._like.first) <= 4
    assert len(replay._like.messages) < 32


def test_a_slow_replica_is_told_apart() -> None:
    """The four replicas differ by their distance to the slow one around the ring; within each all are alike."""
    *_, replay = both(Star(bandwidth=1e8), "ring", (4, 4), 160_000, dict.fromkeys(range(4, 8), 1.5))
    assert replay._like is not None
    classes = replay._like.worker_of.reshape(4, 4)
    assert (classes == classes[:, :1]).all()
    assert len(set(classes[:, 0].tolist())) == 4


def test_one_slow_worker_leaves_nothing_alike() -> None:
    """All others differ by their distance to it around one ring or the other, and so by what they share links with."""
    *_, replay = both(Star(bandwidth=1e8), "ring", (4, 4), 160_000, {5: 1.5})
    assert replay._like is None


def test_a_line_is_not_alike_anywhere() -> None:
    """The ends of a line have links of their own; so nothing but its mirror image could stand for anything."""
    workers = 8
    network, own = Line(bandwidth=1e8).network(workers), graph()
    planner = Planner(network, (2, 4), collectives_named("ring"))
    seconds = np.zeros((len(own.tasks), workers))
    lag = np.arange(workers) * 1e-4
    found = Replay(own, network, planner, seconds, lag, lump=True).run()
    expected = Replay(own, network, planner, seconds, lag).run()
    np.testing.assert_allclose(found.end, expected.end, rtol=0, atol=1e-12 * expected.end.max())


def test_work_does_not_grow_with_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the replicas: the same number of messages in the replay, but for the longer rings over replicas."""
    from simdist.execution.carrier import Carrier

    started: list[int] = []
    real = Carrier._start
    monkeypatch.setattr(Carrier, "_start", lambda self, *what: (started.append(1), real(self, *what))[1])
    counts = {}
    for replicas in (4, 8, 16):
        started.clear()
        network, own = Star(bandwidth=1e8).network(replicas * 4), graph()
        planner = Planner(network, (replicas, 4), collectives_named("ring"))
        seconds = np.zeros((len(own.tasks), replicas * 4))
        Replay(own, network, planner, seconds, np.zeros(replicas * 4), lump=True).run()
        counts[replicas] = len(started)
    # 3 units, each with a gather and a scatter of 3 rounds and an all-reduce of 2 (R - 1)
    assert counts == {r: 3 * (3 + 3 + 2 * (r - 1)) for r in counts}


def test_links_that_vary_are_all_kept() -> None:
    """An outage may hit one link of many, so nothing is lumped where capacities vary with time."""
    workers = 8
    topology = replace_outage(Star(bandwidth=1e8))
    network, own = topology.network(workers), graph()
    planner = Planner(network, (2, 4), collectives_named("ring"))
    replay = Replay(own, network, planner, np.zeros((len(own.tasks), workers)), np.zeros(workers), lump=True)
    assert replay._like is None


def replace_outage(topology: Star) -> Star:
    return Star.model_validate({**topology.model_dump(), "outages": [{"start": 0.001, "duration": 0.01}]})


def test_diagnostics_carry_nothing() -> None:
    """Measurements make workers wait for each other, in the lumped replay too."""
    own = graph()
    assert own.tasks[0].collective is not None
    waiting = replace(own.tasks[0].collective, purpose="diagnostic", axis="workers")
    steps = (*step(), (waiting,))
    graph_ = FSDP().graph(steps)
    network = Star(bandwidth=1e8).network(8)
    planner = Planner(network, (2, 4), collectives_named("ring"))
    seconds = np.zeros((len(graph_.tasks), 8))
    lag = np.linspace(0.0, 1e-3, 8)
    found = Replay(graph_, network, planner, seconds, lag, lump=True).run()
    expected = Replay(graph_, network, planner, seconds, lag).run()
    np.testing.assert_allclose(found.end, expected.end, rtol=0, atol=1e-12 * expected.end.max())


def test_what_would_take_days_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to write instead; what is alike is replayed all the same."""
    monkeypatch.setattr("simdist.execution.replay.LONGEST", 1000)
    own = graph()
    planner = Planner(Star(bandwidth=1e8).network(8), (2, 4), collectives_named("ring"))
    arguments = (own, Star(bandwidth=1e8).network(8), planner, np.zeros((len(own.tasks), 8)))
    with pytest.raises(RunError, match=r"8 workers meet on links.*expected workers that are alike"):
        Replay(*arguments, np.arange(8) * 1e-4, lump=True).run()
    Replay(*arguments, np.zeros(8), lump=True).run()

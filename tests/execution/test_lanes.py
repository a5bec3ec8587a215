"""Lanes against the plain way: all messages of a round as flows through one network, round by round."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simdist.communication.plans import Ring, collectives_named
from simdist.communication.plans.gloo import GlooRing
from simdist.communication.plans.moves import Turn
from simdist.communication.plans.plan import OPS, Plan
from simdist.execution import lane_book
from simdist.execution.counted_lanes import CountedLanes
from simdist.execution.course import Course, drained, run_phases
from simdist.execution.lane_book import LaneBook
from simdist.execution.lanes import Lanes
from simdist.execution.segments import segments
from simdist.network import FatTree, Line, Network, RailOptimised, Star, Topology, Torus, TwoLevel, Wan
from tests.communication.plan_catalogue import REGISTERED

#: networks on which messages of a ring share links in different ways, for 12 workers
TOPOLOGIES: dict[str, Topology] = {
    "star": Star(bandwidth=1e8),
    "star, shared hosts": Star(bandwidth=1e8, workers_per_host=3),
    "star, shared hosts with a limit": Star(bandwidth=1e8, workers_per_host=3, host_bandwidth=3e8, host_latency=1e-6),
    "two-level": TwoLevel(island_size=2, workers_per_host=2, host_bandwidth=1e9, bandwidth=1e8, island_bandwidth=5e8),
    "fat-tree": FatTree(bandwidth=1e8, oversubscription=3),
    "rail-optimised": RailOptimised(bandwidth=1e8, server_size=4),
    "line": Line(bandwidth=1e8),
    "torus": Torus(dims=(3, 4), bandwidth=1e8),
    "half duplex": Star(bandwidth=1e8, duplex="half"),
    "ecmp": FatTree(bandwidth=1e8, oversubscription=3, routing="ecmp"),
    "wan": Wan(regions={"a": 5, "b": 7}, bandwidth=1e8),
}
#: groups of 12 workers: all, or interleaved
GROUPS = {
    "one": np.arange(12).reshape(1, 12),
    "columns": np.arange(12).reshape(2, 6).T,
}


def network(name: str) -> Network:
    return TOPOLOGIES[name].network(12)


def by_hand(plan: Plan, op: str, payload: int, where: Network, groups: np.ndarray) -> np.ndarray:
    """Seconds of each group, from the rounds as the replay has them."""
    course = Course(len(groups), plan.in_flight(op))
    for segment in segments(plan.rounds(op, payload, groups.shape[1]), course.in_flight):
        course.add(drained(where, groups.tolist(), segment))
    return course.over


@pytest.mark.parametrize("plan", [*REGISTERED, "gloo_ring"])
@pytest.mark.parametrize("kind", GROUPS)
@pytest.mark.parametrize("name", TOPOLOGIES)
@pytest.mark.parametrize("many", [1, lane_book.MANY], ids=["counted", "looked at"])
def test_a_plan_takes_as_long_as_its_rounds(
    name: str, kind: str, plan: str, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts, clusters, kinds of clusters and turns are ways to compute less, not something else."""
    monkeypatch.setattr(lane_book, "MANY", many)
    carried = GlooRing() if plan == "gloo_ring" else collectives_named(plan)
    assert isinstance(carried, Plan)
    where, groups = network(name), GROUPS[kind]
    book = LaneBook(where)
    for op in OPS:
        for payload in (12_000, 12_007, 5):
            course = Course(len(groups), carried.in_flight(op))
            lanes = list(run_phases(carried.phases(op, payload, groups.shape[1], 0), book, groups, course))
            expected = by_hand(carried, op, payload, where, groups)
            np.testing.assert_allclose(course.over, expected, rtol=1e-12, err_msg=f"{op} {payload}")
            used = np.zeros((len(groups), len(where.links)), dtype=bool)
            for one in lanes:
                one.mark(used)
            for group, row in zip(groups.tolist(), used, strict=True):
                pairs = {m[:2] for transfers, _ in carried.rounds(op, payload, len(group)) for m in transfers}
                links = {link for s, t in pairs for link in where.route(group[s], group[t]).links}
                assert set(np.flatnonzero(row).tolist()) == links


@settings(max_examples=50)
@given(
    name=st.sampled_from(list(TOPOLOGIES)),
    kind=st.sampled_from(list(GROUPS)),
    hop=st.sampled_from([1, -1]),
    late=st.integers(0, 1),
    data=st.data(),
)
def test_turning_sizes_are_steps_with_the_sizes_rolled(
    name: str, kind: str, hop: int, late: int, data: st.DataObject
) -> None:
    where, groups = network(name), GROUPS[kind]
    n = groups.shape[1]
    sizes = np.array(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))) * 1000
    member = np.arange(n)
    lanes = Lanes(where, groups, member, (member + hop) % n)
    found = lanes.turned(Turn(sizes, hop, late), n - 1)
    for step in range(n - 1):
        expected = lanes.spans(sizes[(member - hop * (step + late)) % n])
        np.testing.assert_allclose(found.left[step], expected.left, rtol=1e-13)
        np.testing.assert_allclose(found.arrived[step], expected.arrived, rtol=1e-13)


@pytest.mark.parametrize("op", ["all_reduce", "all_gather", "reduce_scatter"])
@pytest.mark.parametrize("payload", [12_000, 12_007])
def test_a_turn_says_what_the_moves_say(op: str, payload: int) -> None:
    phases = Ring().phases(op, payload, 12, 0)
    assert phases
    for phase in phases:
        assert phase.turn is not None
        sizes, hop, late = phase.turn
        for step in range(phase.steps):
            *_, size = phase.moves(step).messages()
            np.testing.assert_array_equal(size, sizes[(np.arange(12) - hop * (step + late)) % 12])


def test_like_clusters_are_drained_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ring over 256 hosts of 8 workers: 511 rounds of 2048 messages, but few rows of sizes within a host."""
    from simdist.execution import lanes as module

    drains = []
    monkeypatch.setattr(module, "drain", lambda *what: drains.append(len(what[1])) or np.array(what[2], dtype=float))
    topology = Star(workers_per_host=8, host_bandwidth=1e12)
    groups, course = np.arange(2048).reshape(1, -1), Course(1, 1)
    list(
        run_phases(
            Ring().phases("all_reduce", 2048 * 1000 + 77, 2048, 0), LaneBook(topology.network(2048)), groups, course
        )
    )
    assert set(drains) == {7}
    assert len(drains) <= 2 * 7


def test_the_book_forgets() -> None:
    """A pairwise exchange has other lanes in every round: they are not all kept."""
    book = LaneBook(Star().network(64))
    book._REMEMBERED = 1_000_000
    groups, course = np.arange(64).reshape(1, -1), Course(1, 1)
    list(run_phases(Ring().phases("all_to_all", 640, 64, 0), book, groups, course))
    assert 1 < len(book._known) < 63
    assert book._held == sum(lanes.held_bytes for lanes in book._known.values()) <= 1_000_000


#: where the slowest messages do not come the longest way, or paths depend on more than the switches at their ends
LOOKED_AT = ["fat-tree", "ecmp"]


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_messages_of_one_size_are_seldom_looked_at(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody to everybody: mostly counts decide."""
    monkeypatch.setattr(lane_book, "MANY", 1)
    book, groups, course = LaneBook(network(name)), GROUPS["one"], Course(1, 1)
    (lanes,) = run_phases(collectives_named("direct").phases("all_to_all", 12_000, 12, 0), book, groups, course)
    assert isinstance(lanes, CountedLanes)
    assert ("exact" in vars(lanes)) == (name in LOOKED_AT)


def test_the_book_tells_groups_by_their_size() -> None:
    """Two groups of two are not one of four: the same workers in the same order."""
    book, one, other = LaneBook(Star().network(4)), np.array([0]), np.array([1])
    pairs, all_four = (book.lanes(np.arange(4).reshape(shape), one, other) for shape in ((2, 2), (1, 4)))
    assert len(pairs.spans(np.array([8])).left) == 2
    assert len(all_four.spans(np.array([8])).left) == 1

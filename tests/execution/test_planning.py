"""Who takes which plan: what a choice is told, that it is made once, and that ``auto`` takes the cheapest."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import pytest

from simdist.communication.plans import (
    OPS,
    BinomialTree,
    Direct,
    GroupShape,
    HalvingDoubling,
    Plan,
    RecursiveDoubling,
    Ring,
    collectives,
    collectives_named,
)
from simdist.communication.plans.plan import Collectives
from simdist.communication.trace import CollectiveOp
from simdist.execution.compute_model import ComputeModel
from simdist.execution.planning import Planner
from simdist.execution.pricing import StepPricer
from simdist.network import Line, Network, Star, TwoLevel
from tests.network.catalogue import SAMPLES, Sample

SMALL = {name: sample for name, sample in SAMPLES.items() if 4 <= sample.workers <= 9}
AXES = ("replicas", "shards", "workers")
PLANS: list[Plan] = [Ring(), Direct(), HalvingDoubling(), RecursiveDoubling(), BinomialTree()]


class Asking(Collectives):
    """Notes what it is told, and prices one plan."""

    name: ClassVar[str] = "asking"
    asked: list[tuple[str, int, GroupShape, int, float]]

    def choose(
        self, op: str, payload_bytes: int, group: GroupShape, root: int, seconds: Callable[[Plan], float]
    ) -> Plan:
        self.asked.append((op, payload_bytes, group, root, seconds(Ring())))
        return Ring()


def seconds(
    network: Network, mesh: tuple[int, int], plan: Collectives, op: str, size: int, axis: str = "workers"
) -> float:
    """How long one collective takes in a step of its own."""
    compute = ComputeModel(1.0, (1.0,) * network.workers)
    step = ((CollectiveOp(op, axis, "optimizer", "w", "fp32", size),),)
    return StepPricer(network, mesh, plan, compute).price(step).duration


def test_each_shape_of_group_is_asked_about_once() -> None:
    """3 x 2 on islands of 3: groups of shards {0, 1} and {4, 5} share an island, {2, 3} does not."""
    asking = Asking(asked=[])
    network = TwoLevel(island_size=3).network(6)
    planner = Planner(network, (3, 2), asking)
    for _ in range(2):
        assert planner.plans("shards", "broadcast", 999, 1) == (Ring(), Ring(), Ring())
    assert [(op, size, group, root) for op, size, group, root, _ in asking.asked] == [
        ("broadcast", 999, GroupShape(2, (0, 0)), 1),
        ("broadcast", 999, GroupShape(2, (0, 1)), 1),
    ]


@pytest.mark.parametrize("name", collectives.names())
@pytest.mark.parametrize("op", OPS)
def test_every_group_has_a_plan_and_like_groups_have_the_same(name: str, op: str) -> None:
    for mesh in ((2, 4), (4, 2), (8, 1), (1, 8)):
        network = TwoLevel(island_size=4).network(8)
        planner = Planner(network, mesh, collectives_named(name))
        for axis in AXES:
            groups = planner.groups.by_axis[axis]
            plans = planner.plans(axis, op, 10_000)
            assert len(plans) == len(groups)
            if len({tuple(network.islands[w] for w in group) for group in groups}) == 1:
                assert len(set(plans)) == 1
            for plan, group in zip(plans, groups, strict=True):
                assert isinstance(plan, Plan)
                assert plan.total_sent(op, 10_000, len(group)) >= 0


@pytest.mark.parametrize("sample", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("op", OPS)
def test_a_choice_is_told_what_a_plan_costs(sample: Sample, op: str) -> None:
    asking = Asking(asked=[])
    Planner(sample.network, (1, sample.workers), asking).plans("workers", op, 12_345)
    told = asking.asked[0][-1]
    assert told == pytest.approx(seconds(sample.network, (1, sample.workers), Ring(), op, 12_345), rel=1e-12)


@pytest.mark.parametrize("sample", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("op", OPS)
def test_auto_is_never_slower_than_what_it_chooses_from(sample: Sample, op: str) -> None:
    """For one collective with nothing else under way, which is what it prices."""
    network, mesh = sample.network, (1, sample.workers)
    for size in (0, 1000, 100_000, 10_000_000):
        auto = seconds(network, mesh, collectives_named("auto"), op, size)
        for plan in PLANS:
            assert auto <= seconds(network, mesh, plan, op, size) * (1 + 1e-12), (plan.name, size)


def test_auto_may_be_slower_where_groups_share_links() -> None:
    """A counterexample: it prices each group alone, but here four groups cross the same uplinks at once.

    4 x 4 on islands of 4, latency L of a path, and s = L / 2 for a payload over an idle uplink. Alone, a broadcast
    takes L + 3 s straight to everybody and 2 L + 2 s by a binomial tree; four at once L + 12 s and 2 L + 8 s.
    """
    path, size = 2e-3, 30_000
    network = TwoLevel(
        island_size=4, latency=path / 2, island_latency=0, bandwidth=8 * size / (path / 2), island_bandwidth=1e15
    ).network(16)
    times = {
        name: seconds(network, (4, 4), collectives_named(name), "broadcast", size, "replicas") / path
        for name in ("auto", "direct", "binomial_tree")
    }
    assert times == pytest.approx({"auto": 7, "direct": 7, "binomial_tree": 6}, rel=1e-6)


def test_groups_of_one_shape_share_a_choice_although_their_links_differ() -> None:
    """On a line without clusters all groups look alike: the first one, at the end, speaks for those that are spread."""
    asking = Asking(asked=[])
    planner = Planner(Line().network(8), (4, 2), asking)
    assert len(planner.plans("replicas", "all_reduce", 1000)) == 2
    assert len(asking.asked) == 1


def test_a_group_of_one_sends_nothing_whatever_the_plan() -> None:
    for name in collectives.names():
        assert seconds(Star().network(4), (4, 1), collectives_named(name), "all_reduce", 1000, "shards") == 0.0

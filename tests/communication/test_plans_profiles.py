"""Profiles choose what the libraries do, ``auto`` the cheapest, and names and settings are checked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simdist.communication.plans import (
    OPS,
    DoubleBinaryTree,
    GroupShape,
    Plan,
    Ring,
    TwoLevel,
    collectives,
    collectives_named,
)
from simdist.communication.plans.auto import CANDIDATES
from simdist.communication.plans.gloo import gloo_cuts
from simdist.errors import InputError
from tests.communication.plan_catalogue import REGISTERED
from tests.communication.plan_laws import deliver, sent_and_received

PROFILES = [name for name, kind in collectives.items() if not issubclass(kind, Plan)]
KiB, MiB = 1024, 1024 * 1024


def alone(plan: Plan) -> float:
    raise AssertionError("this profile does not look at the network")


def chosen(profile: str, op: str, payload: int, members: int) -> str:
    return collectives_named(profile).choose(op, payload, GroupShape.flat(members), 0, alone).name


def by_messages(op: str, payload: int, members: int) -> dict[str, float]:
    """A toy network: each round costs 5 and its longest message."""
    return {
        plan.name: sum(
            repeat * (5 + max(size for *_, size in messages))
            for messages, repeat in plan.rounds(op, payload, members)
            if messages
        )
        for plan in (one.on(GroupShape.flat(members)) for one in CANDIDATES)
    }


@pytest.mark.parametrize("profile", PROFILES)
@settings(max_examples=25)
@given(
    op=st.sampled_from(OPS), payload=st.integers(0, 600), scale=st.sampled_from([1, 1000]), islands=st.integers(1, 4)
)
def test_whatever_a_profile_chooses_delivers(profile: str, op: str, payload: int, scale: int, islands: int) -> None:
    shape = GroupShape(9, tuple(member % islands for member in range(9)))
    plan = collectives_named(profile).choose(op, payload * scale, shape, 0, lambda plan: float(len(plan.name)))
    deliver(op, payload, 9, 0, plan.phases(op, payload, 9, 0))
    sent, _ = sent_and_received(plan.rounds(op, payload, 9), 9)
    assert sent == plan.sent(op, payload, 9)


# -- auto -----------------------------------------------------------------------------------------------------------


def test_auto_knows_every_plan() -> None:
    assert sorted(plan.name for plan in CANDIDATES) == sorted(REGISTERED)


@settings(max_examples=25)
@given(op=st.sampled_from(OPS), payload=st.integers(0, 3000), members=st.integers(1, 9))
def test_auto_takes_the_cheapest_and_the_first_of_equals(op: str, payload: int, members: int) -> None:
    costs = by_messages(op, payload, members)
    plan = collectives_named("auto").choose(
        op, payload, GroupShape.flat(members), 0, lambda plan: float(costs[plan.name])
    )
    assert plan.name == next(name for name, cost in costs.items() if cost == min(costs.values()))


def test_auto_prices_no_schedule_twice() -> None:
    priced: list[Plan] = []

    def seconds(plan: Plan) -> float:
        priced.append(plan)
        return 1.0

    collectives_named("auto").choose("all_to_all", 800, GroupShape.flat(8), 0, seconds)
    schedules = {plan.rounds("all_to_all", 800, 8) for plan in priced}
    assert len(schedules) == len(priced) < len(CANDIDATES)


# -- gloo -----------------------------------------------------------------------------------------------------------


def test_gloo_scatters_by_a_whole_all_reduce() -> None:
    """What ProcessGroupGloo does for ``reduce_scatter_tensor``: twice the bytes of a ring's reduce-scatter."""
    gloo = collectives_named("gloo")
    scatter = gloo.choose("reduce_scatter", 800, GroupShape.flat(4), 0, alone)
    reduce = gloo.choose("all_reduce", 800, GroupShape.flat(4), 0, alone)
    assert scatter.rounds("reduce_scatter", 800, 4) == reduce.rounds("all_reduce", 800, 4)
    assert scatter.total_sent("reduce_scatter", 800, 4) == 2 * Ring().total_sent("reduce_scatter", 800, 4)


def test_gloo_s_root_sends_all_its_copies_at_once() -> None:
    tree = collectives_named("gloo").choose("broadcast", 100, GroupShape.flat(8), 0, alone)
    assert tree.rounds("broadcast", 100, 8) == (
        (((0, 1, 100), (0, 2, 100), (0, 4, 100)), 1),
        (((1, 3, 100), (1, 5, 100), (2, 6, 100)), 1),
        (((3, 7, 100),), 1),
    )


@given(payload=st.integers(0, 10 * MiB), members=st.integers(2, 64))
def test_gloo_cuts_whole_numbers_and_leaves_the_rest_to_the_last(payload: int, members: int) -> None:
    sizes = np.diff(gloo_cuts(payload, members)).tolist()
    assert sum(sizes) == payload
    assert sizes == sorted(sizes, reverse=True)
    full = [size for size in sizes if size == sizes[0]]
    assert len([size for size in sizes[len(full) :] if size]) <= 1, "only one chunk is cut short"


def test_gloo_s_only_empty_messages_say_that_a_receiver_is_ready() -> None:
    """Of four bytes only one member has any to pass on; before each pass everybody tells its sender to go on."""
    plan = collectives_named("gloo").choose("all_reduce", 4, GroupShape.flat(4), 0, alone)
    ready = ((0, 1, 0), (1, 2, 0), (2, 3, 0), (3, 0, 0))
    rounds = [messages for messages, repeat in plan.rounds("all_reduce", 4, 4) for _ in range(repeat)]
    assert [len(messages) for messages in rounds] == [4, 1, 1, 1, 4, 1, 1, 1]
    assert rounds[0] == rounds[4] == ready


@given(payload=st.integers(0, 10**6))
def test_gloo_s_all_gather_of_two_crosses_in_one_of_three_halves(payload: int) -> None:
    plan = collectives_named("gloo").choose("all_gather", payload, GroupShape.flat(2), 0, alone)
    rounds = [messages for messages, _ in plan.rounds("all_gather", payload, 2)]
    assert [[message[:2] for message in messages] for messages in rounds] == [[(0, 1)], [(0, 1), (1, 0)], [(1, 0)]]
    assert max(abs(size - payload / 4) for messages in rounds for *_, size in messages) <= 1


# -- mpi ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "members", "switches"),
    [
        ("all_reduce", 8, {2 * KiB: "recursive_doubling", 2 * KiB + 1: "halving_doubling"}),
        ("all_gather", 8, {512 * KiB - 1: "recursive_doubling", 512 * KiB: "ring"}),
        ("all_gather", 6, {80 * 1024 - 1: "bruck", 80 * 1024: "ring"}),
        ("reduce_scatter", 6, {512 * KiB - 1: "halving_doubling", 512 * KiB: "pairwise"}),
        ("all_to_all", 8, {8 * 256: "bruck", 8 * 256 + 8: "direct", 8 * 32 * KiB + 8: "pairwise"}),
        ("all_to_all", 4, {4 * 256: "direct", 4 * 32 * KiB + 4: "pairwise"}),
        ("broadcast", 8, {12 * KiB: "binomial_tree", 512 * KiB: "halving_doubling", MiB: "scatter_all_gather"}),
        ("broadcast", 9, {12 * KiB: "binomial_tree", 512 * KiB: "scatter_all_gather"}),
        ("broadcast", 4, {64 * MiB: "binomial_tree"}),
    ],
)
def test_mpi_switches_where_mpich_does(op: str, members: int, switches: dict[int, str]) -> None:
    assert {payload: chosen("mpi", op, payload, members) for payload in switches} == switches


# -- nccl -----------------------------------------------------------------------------------------------------------


def test_nccl_takes_trees_for_short_and_rings_for_long_all_reduces() -> None:
    for members in (4, 8, 64):
        names = [chosen("nccl", "all_reduce", KiB << power, members) for power in range(21)]
        switch = names.index("ring")
        assert names == ["double_binary_tree"] * switch + ["ring"] * (len(names) - switch)


def test_nccl_switches_later_with_more_members_and_faster_networks() -> None:
    def switch(profile: str, members: int) -> int:
        return next(p for p in range(40) if chosen(profile, "all_reduce", 1 << p, members) == "ring")

    assert switch("nccl", 4) < switch("nccl", 16) < switch("nccl", 128)
    assert switch("nccl(bandwidth=10Gbit/s)", 16) < switch("nccl(bandwidth=400Gbit/s)", 16)


def test_nccl_has_pat_only_for_one_worker_per_node() -> None:
    nccl, on_nodes = collectives_named("nccl"), GroupShape(16, tuple(member // 8 for member in range(16)))
    assert chosen("nccl", "all_gather", 64 * KiB, 16) == "bruck"
    assert nccl.choose("all_gather", 64 * KiB, on_nodes, 0, alone) == Ring()


def test_nccl_s_trees_span_nodes() -> None:
    shape = GroupShape(16, tuple(member // 2 for member in range(16)))
    plan = collectives_named("nccl").choose("all_reduce", KiB, shape, 0, alone)
    assert isinstance(plan, DoubleBinaryTree)
    assert plan.islands == shape.islands


# -- names ----------------------------------------------------------------------------------------------------------


def test_settings_are_named_in_parentheses() -> None:
    assert collectives_named("double_binary_tree(chunk=1MiB)") == DoubleBinaryTree(chunk=MiB)
    assert collectives_named("two_level") == TwoLevel()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rnig", r"unknown collectives 'rnig'; expected one of .*ring.*Did you mean 'ring'\?"),
        ("double_binary_tree(chnk=1MiB)", r"no setting 'chnk'; .*Did you mean 'chunk'\?"),
        ("double_binary_tree(chunk=0)", "chunk: got 0.*above zero"),
        ("double_binary_tree(1MiB)", r"expected settings as name\(key=value"),
        ("ring(chunk=1MiB)", "no setting 'chunk'; expected one of none"),
        ("simdist.units:parse_rate", "expected a subclass of simdist.communication.plans.Plan"),
        ("simdist.communication.plans:Plan", "expected a subclass of"),
    ],
)
def test_what_is_no_plan_is_answered_with_what_is(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        collectives_named(text)

"""Laws of every collective plan: what is delivered, and how many bytes and rounds it takes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simdist.communication.plans import OPS, GroupShape, Plan, Ring, TwoLevel, chunk_sizes
from simdist.communication.plans.double_binary_tree import DoubleBinaryTree, tree_pair
from simdist.communication.plans.gloo import GlooTree
from simdist.communication.plans.moves import Phase, cuts
from tests.communication.plan_catalogue import PLANS, REGISTERED, plan_named
from tests.communication.plan_laws import deliver, least_total, sent_and_received

every_plan = pytest.mark.parametrize("name", PLANS)
every_op = pytest.mark.parametrize("op", OPS)


def roots(op: str, members: int) -> set[int]:
    return {0, members // 2, members - 1} if op == "broadcast" else {0, members - 1}


def spelled(phase: Phase, step: int) -> list[tuple[int, ...]]:
    return list(zip(*(column.tolist() for column in phase.moves(step).messages()), strict=True))


@every_plan
@every_op
def test_every_member_ends_with_what_the_collective_promises(name: str, op: str) -> None:
    """All numbers of members up to 17: folding, unequal chunks and both kinds of trees are among them."""
    for members in range(2, 18):
        plan, payload = PLANS[name](members), 5 * members + 3
        for root in roots(op, members):
            deliver(op, payload, members, root, plan.phases(op, payload, members, root))


@every_plan
@settings(max_examples=30)
@given(
    op=st.sampled_from(OPS),
    payload=st.one_of(st.integers(0, 40), st.integers(0, 5_000), st.integers(0, 2**21)),
    members=st.integers(1, 17),
    data=st.data(),
)
def test_rounds_send_the_bytes_of_the_closed_form(
    name: str, op: str, payload: int, members: int, data: st.DataObject
) -> None:
    root = data.draw(st.integers(0, members - 1))
    plan = PLANS[name](members)
    if isinstance(plan, DoubleBinaryTree) and plan.chunk < 1000:
        payload %= 5_000  # thousands of pieces say no more than hundreds
    check_bytes(plan, op, payload, members, root)


@every_plan
@every_op
@pytest.mark.parametrize("members", [33, 64])
def test_big_groups_send_the_bytes_of_the_closed_form(name: str, op: str, members: int) -> None:
    check_bytes(PLANS[name](members), op, 10 * members + 7, members, 5)


def check_bytes(plan: Plan, op: str, payload: int, members: int, root: int) -> None:
    sent, received = sent_and_received(plan.rounds(op, payload, members, root), members)
    assert sent == plan.sent(op, payload, members, root)
    assert sum(received) == plan.total_sent(op, payload, members, root) >= least_total(op, payload, members)


@every_plan
@every_op
@pytest.mark.parametrize("members", [2, 5, 8, 13])
def test_no_news_travels_faster_than_messages(name: str, op: str, members: int) -> None:
    """Who hears from at most p members per round knows at most (p + 1)^rounds of them; all must hear of somebody."""
    rounds = PLANS[name](members).rounds(op, 6 * members, members)
    if op == "all_reduce" or (op == "all_gather" and members > 2):
        most = max(
            sum(target == member for _, target, _ in messages) for messages, _ in rounds for member in range(members)
        )
        assert (most + 1) ** sum(repeat for _, repeat in rounds) >= members


@every_plan
@settings(max_examples=15)
@given(op=st.sampled_from(OPS), members=st.integers(2, 12), chunk=st.integers(0, 300), rest=st.integers(0, 3))
def test_phases_that_say_they_are_alike_are(name: str, op: str, members: int, chunk: int, rest: int) -> None:
    for phase in PLANS[name](members).phases(op, chunk * members + rest, members, members - 1):
        if phase.alike:
            assert all(spelled(phase, step) == spelled(phase, 0) for step in range(phase.steps))


@every_plan
@every_op
def test_an_empty_payload_moves_no_bytes(name: str, op: str) -> None:
    rounds = PLANS[name](7).rounds(op, 0, 7)
    assert all(size == 0 for messages, _ in rounds for *_, size in messages)


@every_plan
def test_a_group_of_one_sends_nothing(name: str) -> None:
    for op in OPS:
        assert PLANS[name](1).rounds(op, 100, 1) == ()
        assert PLANS[name](1).sent(op, 100, 1) == (0,)


@pytest.mark.parametrize("name", REGISTERED)
def test_plans_are_known_by_their_name(name: str) -> None:
    assert plan_named(name).name == name
    shape = GroupShape.flat(4)
    assert plan_named(name).choose("all_reduce", 1, shape, 0, lambda plan: 0.0) == plan_named(name).on(shape)


@given(payload=st.integers(0, 10_000), members=st.integers(1, 20))
def test_chunks_make_up_the_payload_and_differ_by_one_byte_at_most(payload: int, members: int) -> None:
    sizes = chunk_sizes(payload, members)
    assert sum(sizes) == payload
    assert len(sizes) == members
    assert max(sizes) - min(sizes) <= 1
    assert tuple(np.diff(cuts(payload, members)).tolist()) == sizes


# -- single plans ---------------------------------------------------------------------------------------------------


def test_a_symmetric_ring_is_one_round_repeated() -> None:
    neighbours = tuple((i, (i + 1) % 4, 25) for i in range(4))
    assert Ring().rounds("all_reduce", 100, 4) == ((neighbours, 6),)
    assert Ring().rounds("all_gather", 100, 4) == ((neighbours, 3),)


@given(payload=st.integers(0, 500), members=st.integers(2, 12))
def test_a_ring_is_spelled_as_by_hand(payload: int, members: int) -> None:
    """Fast spelling shares messages between rounds; this is the slow one."""
    size = chunk_sizes(payload, members)
    ring = range(members)
    by_hand = [tuple((i, (i + 1) % members, size[(i - 1 - s) % members]) for i in ring) for s in range(members - 1)]
    by_hand += [tuple((i, (i + 1) % members, size[(i - s) % members]) for i in ring) for s in range(members - 1)]
    found = [messages for messages, repeat in Ring().rounds("all_reduce", payload, members) for _ in range(repeat)]
    assert found == by_hand


def test_a_big_ring_is_spelled_with_few_messages() -> None:
    """Two sizes of chunks make two messages per member, not one per member and round."""
    rounds = Ring().rounds("all_gather", 1_000_003, 512)
    different = {id(message) for messages, _ in rounds for message in messages}
    assert len(rounds) == 511
    assert len(different) <= 3 * 512


ROUNDS = {
    "ring": {"all_reduce": 14, "all_gather": 7, "reduce_scatter": 7, "all_to_all": 7, "broadcast": 14},
    "bidirectional_ring": {"all_reduce": 14, "all_gather": 7, "reduce_scatter": 7, "all_to_all": 4, "broadcast": 11},
    "halving_doubling": {"all_reduce": 6, "all_gather": 3, "reduce_scatter": 3, "all_to_all": 7, "broadcast": 6},
    "recursive_doubling": {"all_reduce": 3, "all_gather": 3, "reduce_scatter": 3, "all_to_all": 7, "broadcast": 6},
    "bruck": {"all_reduce": 6, "all_gather": 3, "reduce_scatter": 3, "all_to_all": 3, "broadcast": 3},
    "binomial_tree": {"all_reduce": 6, "all_gather": 6, "reduce_scatter": 6, "all_to_all": 7, "broadcast": 3},
    "double_binary_tree": {"all_reduce": 6, "all_gather": 7, "reduce_scatter": 7, "all_to_all": 7, "broadcast": 4},
    "two_level": {"all_reduce": 14, "all_gather": 7, "reduce_scatter": 7, "all_to_all": 7, "broadcast": 14},
    "scatter_all_gather": {"all_reduce": 14, "all_gather": 7, "reduce_scatter": 7, "all_to_all": 7, "broadcast": 10},
    "pairwise": {"all_reduce": 14, "all_gather": 7, "reduce_scatter": 7, "all_to_all": 7, "broadcast": 7},
    "direct": {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1, "all_to_all": 1, "broadcast": 1},
    "parameter_server": {"all_reduce": 2, "all_gather": 2, "reduce_scatter": 2, "all_to_all": 2, "broadcast": 1},
}


@pytest.mark.parametrize("name", REGISTERED)
def test_the_rounds_of_eight_members(name: str) -> None:
    """The table of docs/collectives.md."""
    plan = plan_named(name).on(GroupShape.flat(8))
    assert {op: sum(repeat for _, repeat in plan.rounds(op, 800, 8)) for op in OPS} == ROUNDS[name]


@settings(max_examples=40)
@given(data=st.data(), op=st.sampled_from(OPS), payload=st.integers(0, 300), members=st.integers(2, 14))
@pytest.mark.parametrize("kind", [TwoLevel, DoubleBinaryTree])
def test_plans_that_know_islands_deliver_on_any(
    kind: type[TwoLevel | DoubleBinaryTree], data: st.DataObject, op: str, payload: int, members: int
) -> None:
    islands = tuple(data.draw(st.lists(st.integers(0, 4), min_size=members, max_size=members)))
    root = data.draw(st.integers(0, members - 1))
    plan = kind(islands=islands)
    deliver(op, payload, members, root, plan.phases(op, payload, members, root))
    sent, _ = sent_and_received(plan.rounds(op, payload, members, root), members)
    assert sent == plan.sent(op, payload, members, root)


@every_op
def test_two_levels_that_are_one_are_a_ring(op: str) -> None:
    one_island, lonely = GroupShape.flat(6), GroupShape(6, (5, 4, 3, 2, 1, 0))
    assert TwoLevel().on(one_island) == TwoLevel().on(lonely) == Ring()


def across(plan: Plan, op: str, payload: int, shape: GroupShape) -> int:
    """Bytes that leave an island."""
    return sum(
        repeat * size
        for messages, repeat in plan.rounds(op, payload, shape.members)
        for source, target, size in messages
        if shape.islands[source] != shape.islands[target]
    )


@pytest.mark.parametrize("op", ["all_reduce", "reduce_scatter", "all_gather", "all_to_all"])
def test_two_levels_send_the_least_across(op: str) -> None:
    """Sums, or chunks, leave an island once for each other island: 3 islands of 4 and S = 120."""
    shape = GroupShape(12, tuple(member // 4 for member in range(12)))
    least = {"all_reduce": 4 * 120, "reduce_scatter": 2 * 120, "all_gather": 2 * 120, "all_to_all": 12 * 80}[op]
    assert across(TwoLevel().on(shape), op, 120, shape) == least


@given(count=st.integers(2, 200))
def test_the_leaves_of_one_tree_are_inner_nodes_of_the_other(count: int) -> None:
    """Sanders, Speck & Träff 2009; in NCCL's form up to two members are inner in both."""
    first, second = tree_pair(count)
    inner = [{up for up in parents if up >= 0} for parents in (first, second)]
    assert len(inner[0] & inner[1]) <= 2
    assert all(parents.count(-1) == 1 for parents in (first, second))
    assert all(parents.count(place) <= 2 for parents in (first, second) for place in range(count))


def test_pipelining_in_pieces_sends_them_one_round_after_another() -> None:
    one_piece, ten = DoubleBinaryTree(chunk=1000), DoubleBinaryTree(chunk=100)
    rounds = [sum(repeat for _, repeat in plan.rounds("all_reduce", 2000, 8)) for plan in (one_piece, ten)]
    assert rounds == [6, 15]
    most = max(size for messages, _ in ten.rounds("all_reduce", 2000, 8) for *_, size in messages)
    assert most == 200, "a piece of each tree"


@pytest.mark.parametrize(
    ("plan", "op", "payload", "rounds", "sent"),
    [
        (Ring(), "all_reduce", 100, 6, (150, 150, 150, 150)),
        (Ring(), "all_gather", 10, 2, (7, 7, 6)),
        (plan_named("halving_doubling"), "all_reduce", 60, 6, (60, 150, 60, 150, 90, 90)),
        (TwoLevel(islands=(0, 0, 1, 1)), "all_reduce", 40, 4, (60, 60, 60, 60)),
        (DoubleBinaryTree(), "all_reduce", 40, 4, (40, 80, 80, 40)),
        (plan_named("bruck"), "all_to_all", 40, 2, (40, 40, 40, 40)),
        (plan_named("binomial_tree"), "broadcast", 10, 3, (30, 0, 10, 0, 0)),
        (GlooTree(), "broadcast", 100, 3, (300, 200, 100, 100, 0, 0, 0, 0)),
    ],
    ids=lambda value: value.name if isinstance(value, Plan) else None,
)
def test_cases_by_hand(plan: Plan, op: str, payload: int, rounds: int, sent: tuple[int, ...]) -> None:
    """The table of docs/collectives.md."""
    assert plan.sent(op, payload, len(sent)) == sent
    assert sum(repeat for _, repeat in plan.rounds(op, payload, len(sent))) == rounds

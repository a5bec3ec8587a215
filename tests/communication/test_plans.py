"""Laws of every collective plan: what is delivered, and how many bytes it takes."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simdist.communication.plans import Plan, chunk_sizes, collectives_plan, plans
from simdist.communication.plans.plan import OPS
from simdist.errors import InputError

PLANS = plans.names()


def closed_total(op: str, payload: int, members: int) -> int:
    """Card 0, summed over the group: AR 2 (n-1) S; RS, AG, A2A (n-1) S; nothing forwards less than (n-1) S."""
    return (2 if op == "all_reduce" else 1) * (members - 1) * payload


def deliver(plan: Plan, op: str, members: int, root: int) -> list[dict[int, frozenset[int]]]:
    """Run a plan on symbols: per member, the chunks it holds and whose contributions each contains.

    For all_to_all, chunk c at member m is keyed by the sender instead: what m holds from whom.
    """
    everyone = range(members)
    if op in ("all_reduce", "reduce_scatter"):
        held = [{chunk: frozenset({member}) for chunk in everyone} for member in everyone]
    elif op == "all_gather":
        held = [{member: frozenset({member})} for member in everyone]
    elif op == "broadcast":
        held = [{chunk: frozenset({root}) for chunk in everyone} if member == root else {} for member in everyone]
    else:
        held = [{member: frozenset({member})} for member in everyone]
    for phase in plan.phases(op, members, root):
        for step in range(phase.steps):
            in_flight = []
            for source, target, chunks in phase.moves(step):
                assert source != target
                for chunk in chunks:
                    if phase.kind == "exchange":
                        assert chunk == target, "only the receiver's chunk concerns it"
                        in_flight.append((target, source, frozenset({source})))
                    else:
                        in_flight.append((target, chunk, held[source][chunk]))
            for target, chunk, content in in_flight:
                before = held[target].get(chunk, frozenset())
                if phase.kind == "reduce":
                    assert not before & content, "a contribution would be added twice"
                    held[target][chunk] = before | content
                else:
                    held[target][chunk] = content
    return held


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("members", [2, 3, 4, 7])
def test_every_member_ends_with_what_the_collective_promises(name: str, op: str, members: int) -> None:
    for root in range(members) if op == "broadcast" else [0]:
        held = deliver(collectives_plan(name), op, members, root)
        everyone = frozenset(range(members))
        for member in range(members):
            if op == "all_reduce":
                assert held[member] == dict.fromkeys(everyone, everyone)
            elif op == "reduce_scatter":
                assert held[member][member] == everyone
            elif op == "broadcast":
                assert held[member] == {chunk: frozenset({root}) for chunk in everyone}
            else:
                assert held[member] == {other: frozenset({other}) for other in everyone}


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("op", OPS)
@settings(deadline=None, max_examples=60)
@given(payload=st.integers(0, 10_000), members=st.integers(1, 9), data=st.data())
def test_rounds_send_the_bytes_of_the_closed_form(
    name: str, op: str, payload: int, members: int, data: st.DataObject
) -> None:
    root = data.draw(st.integers(0, members - 1))
    plan = collectives_plan(name)
    sent: dict[int, int] = defaultdict(int)
    for transfers, repeat in plan.rounds(op, payload, members, root):
        assert repeat >= 1
        for source, target, size in transfers:
            assert source != target
            sent[source] += repeat * size
    assert tuple(sent[member] for member in range(members)) == plan.sent(op, payload, members, root)
    assert plan.total_sent(op, payload, members, root) == closed_total(op, payload, members)


@pytest.mark.parametrize("name", PLANS)
@settings(deadline=None, max_examples=40)
@given(chunk=st.integers(0, 1000), members=st.integers(2, 9), op=st.sampled_from(OPS))
def test_equal_chunks_cost_every_member_the_card_s_fraction(name: str, chunk: int, members: int, op: str) -> None:
    sent = collectives_plan(name).sent(op, chunk * members, members)
    if op == "broadcast":
        return
    expected = (2 if op == "all_reduce" else 1) * (members - 1) * chunk
    assert sent == (expected,) * members


def test_a_symmetric_ring_is_one_round_repeated() -> None:
    ring = collectives_plan("ring")
    neighbours = tuple((i, (i + 1) % 4, 25) for i in range(4))
    assert ring.rounds("all_reduce", 100, 4) == ((neighbours, 6),)
    assert ring.rounds("all_gather", 100, 4) == ((neighbours, 3),)
    assert sum(repeat for _, repeat in ring.rounds("all_to_all", 100, 4)) == 3
    assert sum(repeat for _, repeat in ring.rounds("broadcast", 100, 4)) == 6


def test_direct_takes_one_round_and_all_reduce_two() -> None:
    direct = collectives_plan("direct")
    assert {op: sum(repeat for _, repeat in direct.rounds(op, 100, 4)) for op in OPS} == {
        "all_reduce": 2,
        "all_gather": 1,
        "reduce_scatter": 1,
        "all_to_all": 1,
        "broadcast": 1,
    }


@given(payload=st.integers(0, 10_000), members=st.integers(1, 20))
def test_chunks_make_up_the_payload_and_differ_by_one_byte_at_most(payload: int, members: int) -> None:
    sizes = chunk_sizes(payload, members)
    assert sum(sizes) == payload
    assert len(sizes) == members
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("name", PLANS)
def test_a_group_of_one_sends_nothing(name: str) -> None:
    plan = collectives_plan(name)
    for op in OPS:
        assert plan.rounds(op, 100, 1) == ()
        assert plan.sent(op, 100, 1) == (0,)
    assert plan.name == name


def test_an_unknown_plan_is_answered_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"'rnig'; expected one of .*ring.*Did you mean 'ring'\?"):
        collectives_plan("rnig")

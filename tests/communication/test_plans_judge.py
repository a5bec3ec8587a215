"""The judge of plans can say no: every way to break a schedule that we could think of is found."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simdist.communication.plans import OPS, Ring
from simdist.communication.plans.moves import Moves, Phase
from tests.communication.plan_laws import Broken, deliver

MEMBERS, PAYLOAD = 5, 50


def altered(op: str, step: int, change: dict[str, object]) -> list[Phase]:
    """The ring's phases, one step of the first with other columns."""
    first, *others = Ring().phases(op, PAYLOAD, MEMBERS, 0)

    def moves(at: int) -> Moves:
        found = first.moves(at)
        return found._replace(**change) if at == step else found

    return [Phase(first.steps, moves), *others]


@given(op=st.sampled_from(OPS), step=st.integers(0, MEMBERS - 2), data=st.data())
def test_a_message_less_is_found(op: str, step: int, data: st.DataObject) -> None:
    found = Ring().phases(op, PAYLOAD, MEMBERS, 0)[0].moves(step)
    kept = np.ones(len(found.source), dtype=bool)
    kept[data.draw(st.integers(0, len(kept) - 1))] = False
    with pytest.raises(Broken):
        deliver(op, PAYLOAD, MEMBERS, 0, altered(op, step, found.where(kept)._asdict()))


@given(op=st.sampled_from(OPS), step=st.integers(0, MEMBERS - 2))
def test_a_byte_less_is_found(op: str, step: int) -> None:
    found = Ring().phases(op, PAYLOAD, MEMBERS, 0)[0].moves(step)
    with pytest.raises(Broken):
        deliver(op, PAYLOAD, MEMBERS, 0, altered(op, step, {"stop": found.stop - 1}))


@pytest.mark.parametrize("op", ["all_reduce", "reduce_scatter"])
def test_a_sum_kept_instead_of_added_is_found(op: str) -> None:
    with pytest.raises(Broken, match="does not end with"):
        deliver(op, PAYLOAD, MEMBERS, 0, altered(op, 1, {"adds": False}))


def test_what_is_added_twice_is_found() -> None:
    scatter, gather = Ring().phases("all_reduce", PAYLOAD, MEMBERS, 0)
    with pytest.raises(Broken, match="adds a contribution twice"):
        deliver("all_reduce", PAYLOAD, MEMBERS, 0, [scatter, Phase(1, lambda _: scatter.moves(0)), gather])


def test_sending_what_has_not_come_in_yet_is_found() -> None:
    (gather,) = Ring().phases("all_gather", PAYLOAD, MEMBERS, 0)
    hasty = Phase(gather.steps, lambda step: gather.moves(gather.steps - 1 - step))
    with pytest.raises(Broken, match="does not hold"):
        deliver("all_gather", PAYLOAD, MEMBERS, 0, [hasty])


def test_the_wrong_part_of_an_all_to_all_is_found() -> None:
    found = Ring().phases("all_to_all", PAYLOAD, MEMBERS, 0)[0].moves(1)
    with pytest.raises(Broken, match="does not end with"):
        deliver("all_to_all", PAYLOAD, MEMBERS, 0, altered("all_to_all", 1, {"target": np.roll(found.target, 1)}))


def test_messages_to_oneself_and_bytes_that_do_not_exist_are_found() -> None:
    found = Ring().phases("all_gather", PAYLOAD, MEMBERS, 0)[0].moves(0)
    with pytest.raises(Broken, match="to itself"):
        deliver("all_gather", PAYLOAD, MEMBERS, 0, altered("all_gather", 0, {"target": found.source}))
    with pytest.raises(Broken, match="do not exist"):
        deliver("broadcast", PAYLOAD, 2, 0, [Phase(1, lambda _: Moves(*(np.array([x]) for x in (0, 1, 0, 51))))])


def test_nothing_done_is_found() -> None:
    for op in OPS:
        with pytest.raises(Broken, match="does not end with"):
            deliver(op, PAYLOAD, MEMBERS, 0, [])

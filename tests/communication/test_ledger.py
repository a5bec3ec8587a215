"""The ledger: rows follow the plan's closed forms, and its hash sees everything but times."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simdist.communication.ledger import COLUMNS, Ledger, one_plan
from simdist.communication.plans import Direct, Plan, Ring
from simdist.communication.plans.plan import OPS
from simdist.communication.trace import CollectiveOp, ComputeOp, SendOp, SleepOp, StepOps
from simdist.program import MeshShape

GATHER = CollectiveOp("all_gather", "shards", "param_gather", "blocks.0", "bf16", 1200)
REDUCE = CollectiveOp("all_reduce", "replicas", "grad_reduce", "blocks.0", "fp32", 1001)
STEP: StepOps = ((GATHER, ComputeOp(5.0)), (SleepOp(1.0),), (REDUCE, GATHER))
TIMINGS = [(0.0, 1.0), (1.0, 2.0), (1.5, 2.5)]


def ledger(plan: Plan | None = None) -> Ledger:
    mesh = MeshShape(2, 4)
    return Ledger(mesh, one_plan(mesh, plan or Ring()))


def booked(step: StepOps, times: list[tuple[float, float]], number: int = 1) -> Ledger:
    book = ledger()
    book.add_step(number, step, times)
    return book


def test_a_row_per_collective_with_the_columns_of_the_contract() -> None:
    table = booked(STEP, TIMINGS).columns()
    assert tuple(table) == COLUMNS
    assert table["tensor"] == ["blocks.0"] * 3
    assert table["op"] == ["all_gather", "all_reduce", "all_gather"]
    assert table["axis"] == ["shards", "replicas", "shards"]
    assert table["group_size"] == [4, 2, 4]
    assert table["groups"] == [2, 4, 2]
    assert table["payload_bytes"] == [1200, 1001, 1200]
    assert table["codec"] == ["bf16", "fp32", "bf16"]
    assert table["plan"] == ["ring"] * 3
    assert list(zip(table["start_seconds"], table["end_seconds"], strict=True)) == TIMINGS


@pytest.mark.parametrize("plan", [Ring(), Direct()], ids=lambda plan: plan.name)
@pytest.mark.parametrize("axis", ["replicas", "shards", "workers"])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("size", [0, 7, 1000])
def test_sent_bytes_are_the_plans_over_all_groups(plan: Plan, op: str, axis: str, size: int) -> None:
    book = ledger(plan)
    members = {"replicas": 2, "shards": 4, "workers": 8}[axis]
    entry = book.entry(CollectiveOp(op, axis, "optimizer", "w", "fp32", size, root=1), [plan] * (8 // members))
    sent = plan.sent(op, size, members, 1)
    assert entry.sent_bytes_total == sum(sent) * entry.groups
    assert entry.groups * entry.group_size == 8
    assert entry.sent_bytes_per_worker == pytest.approx(sum(sent) / members, rel=1e-15)


def test_totals_add_up() -> None:
    book = booked(STEP, TIMINGS)
    book.add_step(2, STEP, TIMINGS)
    assert len(book) == 6
    # columns are of any type; this one's are numbers
    sent = sum(book.columns()["sent_bytes_total"])  # type: ignore[arg-type]
    assert book.total_bytes == 2 * book.step_bytes(STEP) == sent
    # all-gather: 3 x 1200 in each of two groups, twice; all-reduce: 2 x 1001 in each of four
    assert book.step_bytes(STEP) == 2 * (2 * 3 * 1200) + 4 * 2 * 1001


def test_a_message_is_sent_once_by_one_worker() -> None:
    book = ledger()
    entry = book.message(SendOp(3, 77, "outer_sync", "x", "fp16", "tag", wait=True))
    book.add(4, entry, 0.5, 0.75)
    row = {name: values[0] for name, values in book.columns().items()}
    assert (row["step"], row["op"], row["payload_bytes"], row["sent_bytes_total"]) == (4, "send", 77, 77)
    assert (row["group_size"], row["groups"], row["codec"], row["plan"]) == (2, 1, "fp16", "direct")
    assert book.total_bytes == 77


def test_the_number_of_times_must_match() -> None:
    with pytest.raises(ValueError, match="zip"):
        booked(STEP, TIMINGS[:2])


def test_times_do_not_show_in_the_hash() -> None:
    later = [(start + 1, end + 3) for start, end in TIMINGS]
    assert booked(STEP, TIMINGS).sha256() == booked(STEP, later).sha256()
    assert COLUMNS[-2:] == ("start_seconds", "end_seconds")


@pytest.mark.parametrize(
    "change",
    [
        {"op": "all_to_all"},
        {"axis": "replicas"},
        {"purpose": "optimizer"},
        {"tensor": "blocks.1"},
        {"codec": "fp16"},
        {"payload_bytes": 1204},
    ],
    ids=lambda change: next(iter(change)),
)
def test_all_else_shows_in_the_hash(change: dict[str, object]) -> None:
    # fields by name, of several types
    changed = ((replace(GATHER, **change), *STEP[0][1:]), *STEP[1:])  # type: ignore[arg-type]
    assert booked(changed, TIMINGS).sha256() != booked(STEP, TIMINGS).sha256()


def test_step_order_and_plan_show_in_the_hash() -> None:
    own = booked(STEP, TIMINGS).sha256()
    assert booked(STEP, TIMINGS, number=2).sha256() != own
    assert booked(STEP[::-1], TIMINGS).sha256() != own
    other = ledger(Direct())
    other.add_step(1, STEP, TIMINGS)
    assert other.sha256() != own

"""The virtual clock, by cases that can be done by hand.

Most run on a star of 8 Mbit/s (one byte a microsecond) with 1 ms per link, so a message of n bytes takes
2 ms + n us, and a worker does one operation a second.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from simdist.communication.plans import Direct, Plan, Ring
from simdist.communication.trace import CollectiveOp, ComputeOp, ReceiveOp, SendOp, SleepOp, WaveOps
from simdist.errors import DeadlockError, ProgramError
from simdist.execution.compute_model import ComputeModel
from simdist.execution.events import DIAGNOSTIC, Groups
from simdist.execution.timeline import Place, Timeline, Woken
from simdist.network import Star
from simdist.program.mesh import DIAGNOSTIC as PROGRAM_DIAGNOSTIC

MS = 1e-3


def timeline(mesh: tuple[int, int], plan: Plan | None = None, speeds: list[float] | None = None) -> Timeline:
    count = mesh[0] * mesh[1]
    network = Star(bandwidth=8e6, latency=1e-3).network(count)
    return Timeline(network, mesh, plan or Ring(), ComputeModel.of_speeds(speeds or [1.0] * count))


def reduce(size: int = 1000, tensor: str = "w", axis: str = "shards", op: str = "all_reduce") -> CollectiveOp:
    return CollectiveOp(op, axis, "optimizer", tensor, "fp32", size)


def send(to: int, size: int = 1000, tag: str = "", wait: bool = True) -> SendOp:
    return SendOp(to, size, "push", "w", "fp32", tag, wait)


def run(clock: Timeline, programs: dict[int, list[WaveOps]]) -> list[Woken]:
    """Let each worker hand in its waves one after the other; return all wakings."""
    waves = {worker: iter(program) for worker, program in programs.items()}
    woken: list[Woken] = []
    for worker, left in waves.items():
        clock.submit(worker, next(left))
    while now := clock.advance():
        woken += now
        for worker, *_ in now:
            following = next(waves[worker], None)
            if following is not None:
                clock.submit(worker, following)
    return woken


def times(woken: list[Woken]) -> list[tuple[int, float]]:
    return [(worker, pytest.approx(time, rel=1e-12)) for worker, time, _ in woken]


def test_the_diagnostic_purpose_is_the_program_s() -> None:
    assert DIAGNOSTIC == PROGRAM_DIAGNOSTIC


def test_groups_lie_on_the_mesh_as_worker_equals_replica_times_shards_plus_shard() -> None:
    groups = Groups((2, 3))
    assert groups.by_axis["shards"] == ((0, 1, 2), (3, 4, 5))
    assert groups.by_axis["replicas"] == ((0, 3), (1, 4), (2, 5))
    assert groups.of("workers", 4) == (0, 1, 2, 3, 4, 5)
    assert groups.of("replicas", 4) == (1, 4)


def test_compute_adds_up_on_one_stream_and_sleep_runs_beside_it() -> None:
    clock = timeline((1, 2), speeds=[1.0, 4.0])
    wave = (ComputeOp(2.0), SleepOp(2.5), ComputeOp(1.0))
    assert times(run(clock, {0: [wave], 1: [wave]})) == [(1, 2.5), (0, 3.0)]
    assert [clock.compute_seconds(worker) for worker in (0, 1)] == [3.0, 0.75]
    assert [clock.clock(worker) for worker in (0, 1)] == [3.0, 2.5]
    first = [(event.kind, event.start, event.end) for event in clock.events if event.members == (0,)]
    assert first == [("compute", 0.0, 2.0), ("sleep", 0.0, 2.5), ("compute", 2.0, 3.0)]


def test_an_empty_wave_is_over_at_once() -> None:
    assert run(timeline((1, 2)), {0: [()]}) == [Woken(0, 0.0, ())]


def test_a_collective_starts_with_its_last_member() -> None:
    clock = timeline((1, 2))
    woken = run(clock, {0: [(reduce(),)], 1: [(SleepOp(1.0),), (reduce(),)]})
    # 2 rounds of 500 bytes, each 2 ms + 0.5 ms.
    assert times(woken) == [(1, 1.0), (0, 1.005), (1, 1.005)]
    (event,) = [event for event in clock.events if event.kind == "collective"]
    assert event.start == 1.0
    assert event.places == (Place(0, 0, 0), Place(1, 1, 0))
    # a collective's answer is an index, never a place
    assert clock.events[woken[1].answers[0]] is event  # type: ignore[index]


def test_groups_of_an_axis_run_apart() -> None:
    clock = timeline((2, 2))
    late = [(SleepOp(1.0),), (reduce(),)]
    woken = run(clock, {0: [(reduce(),)], 1: [(reduce(),)], 2: [(reduce(),)], 3: late})
    assert times(woken) == [(0, 5 * MS), (1, 5 * MS), (3, 1.0), (2, 1.005), (3, 1.005)]


def test_fusion_pays_latency_once_and_bytes_in_full() -> None:
    clock = timeline((1, 2))
    wave = (reduce(1000, "a"), reduce(3000, "b"))
    woken = run(clock, {0: [wave], 1: [wave]})
    # 2 rounds of 2000 bytes, each 2 ms + 2 ms.
    assert times(woken) == [(0, 8 * MS), (1, 8 * MS)]
    assert [(event.op, event.start, event.end) for event in clock.events] == [
        (op, 0.0, pytest.approx(8 * MS)) for op in wave
    ]
    assert woken[0].answers == (0, 1)


def test_different_operations_of_a_wave_share_the_links() -> None:
    clock = timeline((1, 2))
    wave = (reduce(2000, op="all_gather"), reduce(4000, op="reduce_scatter"))
    run(clock, {0: [wave], 1: [wave]})
    # One round each, 1000 and 2000 bytes: both at half rate until 2 ms, then 1 ms more for the second; latency 2 ms.
    assert [event.end for event in clock.events] == [pytest.approx(4 * MS), pytest.approx(5 * MS)]


def test_diagnostics_synchronise_but_take_no_time() -> None:
    clock = timeline((1, 2))
    free = replace(reduce(), purpose=DIAGNOSTIC)
    woken = run(clock, {0: [(free, reduce())], 1: [(SleepOp(1.0),), (free, reduce())]})
    assert times(woken)[1:] == [(0, 1.005), (1, 1.005)]
    assert [event.end - event.start for event in clock.events if event.op == free] == [0.0]


def test_members_that_disagree_are_both_named() -> None:
    clock = timeline((1, 2))
    clock.submit(0, (reduce(1000, "a"),))
    with pytest.raises(
        ProgramError,
        match=r"worker 0 asks for all_reduce 'a' on shards \(optimizer, 1000 bytes as fp32\), but worker 1 .* 'b'",
    ):
        clock.submit(1, (reduce(1000, "b"),))


@pytest.mark.parametrize(
    "other",
    [
        reduce(op="all_gather"),
        reduce(size=1001),
        replace(reduce(), codec="bf16"),
        replace(reduce(), purpose="grad_reduce"),
        replace(reduce(), root=1),
    ],
)
def test_members_must_agree_in_everything(other: CollectiveOp) -> None:
    clock = timeline((1, 2))
    clock.submit(0, (reduce(),))
    with pytest.raises(ProgramError, match="must ask for the same collective"):
        clock.submit(1, (other,))


def test_axes_are_matched_apart() -> None:
    """One worker may ask on two axes in the order that suits it."""
    clock = timeline((1, 2))
    one, other = reduce(axis="shards"), reduce(axis="workers")
    woken = run(clock, {0: [(one, other)], 1: [(other, one)]})
    # as above
    asked = [[clock.events[answer].op for answer in answers] for _, _, answers in woken]  # type: ignore[index]
    assert asked == [[one, other], [other, one]]


def test_a_root_outside_the_group_is_refused() -> None:
    with pytest.raises(ProgramError, match="from root 2; expected 0 to 1"):
        timeline((1, 2)).submit(0, (replace(reduce(op="broadcast"), root=2),))


def test_send_and_receive() -> None:
    clock = timeline((1, 2))
    woken = run(clock, {0: [(send(1, tag="x"),)], 1: [(ReceiveOp(0, "x"),)]})
    assert times(woken) == [(0, 3 * MS), (1, 3 * MS)]
    assert woken[1].answers == (Place(0, 0, 0),)
    assert [(event.kind, event.members, event.start) for event in clock.events] == [
        ("send", (0,), 0.0),
        ("receive", (1,), 0.0),
    ]


def test_a_send_that_does_not_wait_lets_the_sender_go_on() -> None:
    clock = timeline((1, 2))
    woken = run(clock, {0: [(send(1, wait=False),), (SleepOp(1 * MS),)], 1: [(ReceiveOp(None, None),)]})
    assert times(woken) == [(0, 0.0), (0, 1 * MS), (1, 3 * MS)]


def test_messages_nobody_waits_for_still_arrive() -> None:
    clock = timeline((1, 2))
    run(clock, {0: [(send(1, wait=False),)]})
    assert [(event.kind, event.end) for event in clock.events] == [("send", pytest.approx(3 * MS))]
    assert clock.clock(0) == 0.0


def test_an_early_message_waits_for_its_receiver() -> None:
    clock = timeline((1, 2))
    woken = run(clock, {0: [(send(1),)], 1: [(SleepOp(1.0),), (ReceiveOp(0, None),)]})
    assert times(woken) == [(0, 3 * MS), (1, 1.0), (1, 1.0)]


def test_receive_from_anybody_takes_the_earliest_then_the_lowest_worker() -> None:
    clock = timeline((1, 4))
    receiver: list[WaveOps] = [(ReceiveOp(None, None),)] * 3
    woken = run(clock, {3: [(send(0, 1000),)], 2: [(send(0, 1000),)], 1: [(SleepOp(1.0),), (send(0),)], 0: receiver})
    assert [answers for worker, _, answers in woken if worker == 0] == [
        (Place(2, 0, 0),),
        (Place(3, 0, 0),),
        (Place(1, 1, 0),),
    ]


def test_receivers_choose_by_sender_and_tag() -> None:
    clock = timeline((1, 3))
    wave = (ReceiveOp(2, None), ReceiveOp(None, "b"), ReceiveOp(None, None))
    woken = run(clock, {0: [wave], 1: [(send(0, 10, "a"), send(0, 20, "b"))], 2: [(send(0, 9000, "b"),)]})
    (answers,) = [answers for worker, _, answers in woken if worker == 0]
    assert answers == (Place(2, 0, 0), Place(1, 0, 1), Place(1, 0, 0))


def test_messages_of_one_tag_do_not_overtake_each_other_and_other_tags_may() -> None:
    clock = timeline((1, 2))
    wave = (send(1, 4000, "x"), send(1, 10, "x"), send(1, 10, "y"))
    woken = run(clock, {0: [wave], 1: [(ReceiveOp(0, None),)] * 3})
    assert [answers[0] for worker, _, answers in woken if worker == 1] == [
        Place(0, 0, 2),
        Place(0, 0, 0),
        Place(0, 0, 1),
    ]


def test_a_worker_may_send_to_itself() -> None:
    clock = timeline((1, 2))
    woken = run(clock, {0: [(send(0), ReceiveOp(0, None))]})
    assert times(woken) == [(0, 0.0)]


def test_messages_to_nobody_are_refused() -> None:
    with pytest.raises(ProgramError, match="worker 0 sends a message to worker 2; expected 0 to 1"):
        timeline((1, 2)).submit(0, (send(2),))


def test_messages_and_collectives_share_the_links() -> None:
    clock = timeline((1, 2))
    wave = (reduce(2000, op="all_gather"),)
    run(clock, {0: [(*wave, send(1, 1000))], 1: [wave]})
    ends = {(event.kind): event.end for event in clock.events}
    # Worker 0's uplink carries 1000 bytes of each.
    assert ends == {"collective": pytest.approx(4 * MS), "send": pytest.approx(4 * MS)}


def test_a_token_goes_round_the_ring() -> None:
    clock = timeline((1, 4))
    programs: dict[int, list[WaveOps]] = {0: [(send(1),), (ReceiveOp(3, None),)]}
    programs |= {w: [(ReceiveOp(w - 1, None),), (send((w + 1) % 4),)] for w in (1, 2, 3)}
    woken = run(clock, programs)
    assert woken[-1].worker == 3
    assert clock.clock(0) == pytest.approx(4 * 3 * MS)


def test_a_slow_worker_does_not_hold_back_an_asynchronous_server() -> None:
    """Worker 0 serves; worker 2 is ten times slower than worker 1, which pushes nine times before it."""
    clock = timeline((1, 3), speeds=[1.0, 1.0, 0.1])
    order: list[int] = []
    turn: WaveOps = (ComputeOp(1.0),)
    for worker in (1, 2):
        clock.submit(worker, turn)
    clock.submit(0, (ReceiveOp(None, None),))
    while len(order) < 11:
        for worker, _, answers in clock.advance():
            if worker == 0:
                (place,) = answers
                assert isinstance(place, Place)
                order.append(place.worker)
                clock.submit(0, (ReceiveOp(None, None),))
            elif clock.events[-1].kind == "compute" and clock.events[-1].members == (worker,):
                clock.submit(worker, (send(0, wait=True),))
            else:
                clock.submit(worker, turn)
    # A turn of worker 1 takes 1.003 s, one of worker 2 10.003 s.
    assert order == [1] * 9 + [2, 1]


def test_a_deadlock_names_every_waiting_worker_and_what_it_waits_for() -> None:
    clock = timeline((2, 2))
    clock.submit(0, (reduce(),))
    clock.submit(2, (ReceiveOp(1, "x"), reduce(tensor="v", axis="workers")))
    clock.submit(3, (ReceiveOp(None, None), ComputeOp(1.0)))
    with pytest.raises(DeadlockError) as error:
        clock.advance()
    assert str(error.value) == (
        "deadlock at 1 simulated seconds: worker 0 waits in all_reduce 'w' on shards for worker 1; "
        "worker 2 waits for a message from worker 1 tagged 'x'; "
        "worker 2 waits in all_reduce 'v' on workers for workers 0, 1, 3; "
        "worker 3 waits for a message from anybody"
    )
    assert clock.waiting()[3] == (ReceiveOp(None, None),)


def test_workers_may_start_late() -> None:
    clock = Timeline(
        Star(bandwidth=8e6, latency=1e-3).network(2),
        (1, 2),
        Ring(),
        ComputeModel.of_speeds([1.0, 1.0]),
        start=[0.5, 0.25],
    )
    woken = run(clock, {0: [(reduce(),)], 1: [(SleepOp(0.0),), (reduce(),)]})
    assert times(woken) == [(1, 0.25), (0, 0.505), (1, 0.505)]


def test_the_direct_plan_shares_each_uplink_among_its_receivers() -> None:
    clock = timeline((1, 4), Direct())
    wave = (reduce(4000, op="all_gather"),)
    woken = run(clock, {worker: [wave] for worker in range(4)})
    # Three messages of 1000 bytes on each uplink, one latency.
    assert times(woken) == [(worker, 5 * MS) for worker in range(4)]


def test_the_same_waves_give_the_same_history_to_the_bit() -> None:
    def history() -> list[object]:
        clock = timeline((2, 2), speeds=[1.0, 1.1, 0.9, 1.3])
        waves: list[WaveOps] = [
            (ComputeOp(0.01 * k), reduce(999 + k), reduce(501, axis="replicas"), reduce(77, op="all_gather"))
            for k in range(5)
        ]
        run(clock, dict.fromkeys(range(4), waves))
        return list(clock.events)

    assert history() == history()

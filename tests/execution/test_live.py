"""Irregular programs on the event-driven engine: whole runs of small worker programs whose times are done by hand.

The star has 1 ms per link and, if nothing else is said, 8 Mbit/s: a message of n bytes alone on its way takes
2 ms + n us. A worker does one operation a second.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from simdist.assembly import build_hosts, build_job, build_pricer, build_task, build_timeline
from simdist.communication.ledger import Ledger
from simdist.communication.semantics import pairwise_sum
from simdist.errors import DeadlockError, ProgramError
from simdist.execution.events import Event
from simdist.execution.inline import inline_worker
from simdist.execution.live import Booked, LiveRun, Noted
from simdist.execution.live_block import LiveBlock, Meeting
from simdist.execution.wiring import Wiring
from simdist.irregular_run import follow
from simdist.program import MeshShape, Worker, together
from simdist.program.program import IrregularProgram
from simdist.program.random import normal
from simdist.running import run
from simdist.scenario import Scenario
from simdist.schedules import Job, Schedule

MS = 1e-3
TEACHER = {"name": "teacher", "rows": 4, "columns": 3, "matrices": 1}

# -- programs: one function each, run by every worker -----------------------------------------------------------------


async def token_ring(worker: Worker, rounds: int = 3) -> None:
    """A token of 1000 bytes goes round and counts its hops."""
    assert worker.index is not None
    on_wire = worker.labelled("pass", "token")
    before, behind = (worker.index - 1) % worker.count, (worker.index + 1) % worker.count
    token = torch.zeros(250)
    for _ in range(rounds):
        if worker.index == 0:
            await on_wire.send(behind, token + 1, tag="token", wait=False)
            token = (await worker.receive(before, tag="token")).tensor
        else:
            token = (await worker.receive(before, tag="token")).tensor
            await on_wire.send(behind, token + 1, tag="token", wait=False)
    worker.observe(hops=token[0])


async def in_order(worker: Worker) -> None:
    """A long message and two short ones: only another tag may overtake."""
    if worker.index == 0:
        await worker.send(1, torch.zeros(1000), tag="a", wait=False, note="long")
        await worker.send(1, torch.zeros(10), tag="a", wait=False, note="short")
        await worker.send(1, torch.zeros(10), tag="b", wait=False, note="other")
    elif worker.index == 1:
        worker.observe(notes=[(await worker.receive()).note for _ in range(3)])


async def race(worker: Worker) -> None:
    """Workers 1 to 3 send to worker 0, which takes what comes: 3 is early, 1 and 2 arrive together."""
    if worker.index == 0:
        worker.observe(sources=[(await worker.receive()).source for _ in range(3)])
        return
    if worker.index != 3:
        await worker.sleep(0.1)
    await worker.send(0, torch.zeros(250))


async def work_and_sleep(worker: Worker) -> None:
    await worker.compute(2.0)
    worker.observe(what="computed")
    await worker.sleep(0.5)
    worker.observe(what="slept")


async def overlapping(worker: Worker, wait: bool = False) -> None:
    """One second of transfer, one of computing."""
    if worker.index == 0:
        await worker.send(1, torch.zeros(250_000), wait=wait)
        await worker.compute(1.0)
        worker.observe(what="sender done")
    else:
        await worker.receive(0)
        worker.observe(what="received")


async def changed_after_sending(worker: Worker) -> None:
    """The sender goes on and writes into the tensor that is still on its way."""
    if worker.index == 0:
        x = torch.ones(250)
        await worker.send(1, x, wait=False)
        x.zero_()
        await worker.sleep(1.0)
    elif worker.index == 1:
        worker.observe(got=(await worker.receive(0)).tensor.sum())


async def meet(worker: Worker) -> None:
    """Every collective, on workers that come at different times."""
    assert worker.index is not None
    await worker.sleep(0.25 * worker.index)
    x, mesh = drawn(worker.index), worker.labelled("meet", "x").mesh
    results = [
        await mesh.workers.sum(x),
        await mesh.shards.mean(x),
        await mesh.shards.all_gather(x, -1),
        await mesh.shards.reduce_scatter(x, -1),
        await mesh.replicas.all_to_all(x, split_dim=-1, concat_dim=-2),
        await mesh.workers.broadcast(x, root=worker.count - 1),
    ]
    worker.observe(values=[result.tolist() for result in results])


def drawn(worker: int) -> Tensor:
    return normal((2, 12), 0, "meet", worker).float()


async def measuring(worker: Worker) -> None:
    if worker.index == 0:
        await worker.sleep(0.5)
    total = await worker.mesh.measuring().workers.sum(torch.ones(1000))
    worker.observe(total=total[0])


async def receive_and_compute(worker: Worker) -> None:
    """What is asked together is in flight together."""
    if worker.index == 0:
        await worker.send(1, torch.zeros(250_000), wait=False)
        return
    message, _ = await together(worker.receive(0), worker.compute(1.5))
    worker.observe(source=message.source)


async def other_size(worker: Worker) -> None:
    await worker.labelled("meet", "x").mesh.workers.sum(torch.ones(10 if worker.index != 1 else 20))


async def other_shape(worker: Worker) -> None:
    await worker.labelled("meet", "x").mesh.workers.sum(torch.ones((2, 5) if worker.index != 1 else (10,)))


async def other_op(worker: Worker) -> None:
    axis = worker.labelled("meet", "x").mesh.workers
    await (axis.sum(torch.ones(12)) if worker.index != 1 else axis.all_gather(torch.ones(4), -1))


async def nobody_there(worker: Worker) -> None:
    await worker.send(7, torch.ones(1))


async def user_mistake(worker: Worker) -> None:
    await worker.sleep(0.1)
    if worker.index == 1:
        raise ZeroDivisionError("a mistake of the user")


async def stuck(worker: Worker) -> None:
    """Three workers that wait for each other in three ways; worker 3 has long ended."""
    if worker.index == 0:
        await worker.labelled("push", "x").send(3, torch.ones(250), wait=False)
        await worker.receive(1, tag="go")
    elif worker.index == 1:
        await worker.labelled("meet", "x").mesh.workers.sum(torch.ones(3))
    elif worker.index == 2:
        await worker.receive()


async def talk(worker: Worker) -> None:
    """A bit of everything, at different times, for the comparison of engines."""
    assert worker.index is not None
    x = drawn(worker.index)
    for turn in range(4):
        await worker.compute(0.01 * (worker.index + 1))
        to = (worker.index + turn % 3 + 1) % worker.count
        await worker.labelled("push", "x").send(to, x, tag=str(turn), wait=turn % 2 == 0, note=turn)
        x = x + 0.3 * (await worker.receive(tag=str(turn))).tensor
        x = x - 0.1 * await worker.labelled("meet", "x").mesh.workers.mean(x)
        worker.observe(step=turn + 1, train_loss=x.norm(), check=x.sum())
    worker.observe(final=x.tolist())


class Talk(Schedule):
    """A schedule of the user's: every worker runs the function of this file that ``program`` names."""

    name: str = "talk"
    program_name: str
    lockstep: ClassVar[bool] = False

    def program(self, job: Job) -> TalkProgram:
        return TalkProgram(globals()[self.program_name])


class TalkProgram(IrregularProgram):
    def __init__(self, function: Callable[[Worker], Coroutine[Any, Any, None]]) -> None:
        self.function = function

    async def main(self, worker: Worker) -> dict[str, Tensor] | None:
        await self.function(worker)
        return {"x": torch.ones(2)} if worker.index == 0 else None


# -- running them -----------------------------------------------------------------------------------------------------


def scenario(program: str, workers: int = 4, *, bandwidth: Any = "8Mbit/s", **changes: Any) -> Scenario:
    return Scenario.from_dict(
        {
            "workload": TEACHER,
            "optimizer": {"name": "sgd", "lr": 0.1},
            "mesh": {"replicas": workers},
            "schedule": {"name": f"{__file__}:Talk", "program_name": program},
            "network": {"bandwidth": bandwidth, "latency": "1ms"},
            "compute": {"device": "custom", "peak_flops": 1.0, "mfu": 1.0},
            **changes,
        }
    )


@dataclass
class Played:
    """What became of a program."""

    ledger: Ledger
    events: list[Event]
    noted: list[Noted] = field(default_factory=list)
    booked: list[Booked] = field(default_factory=list)
    clocks: list[float] = field(default_factory=list)
    parcels: int = 0

    def rows(self, worker: int) -> list[dict[str, Any]]:
        return [note.row for note in self.noted if note.worker == worker]

    def times(self, worker: int) -> list[float]:
        return [note.seconds for note in self.noted if note.worker == worker]


def play(chosen: Scenario, hold: Callable[[float], None] | None = None) -> Played:
    timeline = build_timeline(chosen)
    found = Played(Ledger(chosen.mesh.shape, build_pricer(chosen).plans), timeline.events)

    def tell(booked: Any, noted: Any) -> None:
        found.booked += booked
        found.noted += noted
        for one in booked:
            found.ledger.add(1, one.entry, one.start, one.end)

    with build_hosts(chosen, build_job(chosen, build_task(chosen))) as hosts:
        live = LiveRun(hosts, timeline, found.ledger, hold)
        live.run(range(chosen.workers), tell)
    found.clocks = [timeline.clock(worker) for worker in range(chosen.workers)]
    found.parcels = len(live._parcels)
    return found


def close(*seconds: float) -> list[Any]:
    return [pytest.approx(time, rel=1e-12) for time in seconds]


# -- laws -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [2, 3, 5])
@pytest.mark.parametrize("bandwidth", [8e6, 1e9])
def test_a_token_ring(workers: int, bandwidth: float) -> None:
    rounds = 3
    found = play(scenario("token_ring", workers, bandwidth=bandwidth))
    hop = 2 * MS + 1000 * 8 / bandwidth
    assert found.rows(0) == [{"hops": rounds * workers}]
    assert found.times(0) == close(rounds * workers * hop)
    spans = [(one.start, one.end) for one in found.booked]
    assert [value for span in spans for value in span] == close(
        *(value for n in range(rounds * workers) for value in (n * hop, (n + 1) * hop))
    )
    columns = found.ledger.columns()
    rows = rounds * workers
    assert columns["sent_bytes_total"] == columns["payload_bytes"] == [1000] * rows
    assert columns["sent_bytes_per_worker"] == [1000.0] * rows
    for name, value in {"op": "send", "purpose": "pass", "tensor": "token", "plan": "direct", "codec": "fp32"}.items():
        assert columns[name] == [value] * rows, name
    assert found.parcels == 0


def test_messages_of_one_tag_keep_their_order() -> None:
    found = play(scenario("in_order", 2))
    assert found.rows(1) == [{"notes": ["other", "long", "short"]}]
    # 40 + 40 + 4000 bytes share one link: the last one leaves after 4080 us
    assert found.times(1) == close(2 * MS + 4080e-6)
    assert found.parcels == 0


def test_anybody_means_the_earliest_and_of_equals_the_lowest() -> None:
    found = play(scenario("race"))
    assert found.rows(0) == [{"sources": [3, 1, 2]}]
    # both messages of 1000 bytes share worker 0's downlink
    assert found.times(0) == close(0.1 + 2 * MS + 2000e-6)


def test_every_worker_computes_at_its_own_speed() -> None:
    compute = {"device": "custom", "peak_flops": 2.0, "mfu": 0.5, "speeds": {1: 4.0, 2: 0.5}}
    found = play(scenario("work_and_sleep", 3, compute=compute))
    assert [found.times(worker) for worker in range(3)] == [close(2.0, 2.5), close(0.5, 1.0), close(4.0, 4.5)]


def test_a_message_that_nobody_waits_for_travels_beside_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    beside = play(scenario("overlapping", 2))
    assert (beside.times(0), beside.times(1)) == (close(1.0), close(1.002))
    # schedules in files are loaded as a module of their own, where the program is looked up
    module = importlib.import_module(type(scenario("overlapping", 2).schedule).__module__)
    monkeypatch.setattr(module.overlapping, "__defaults__", (True,))
    waiting = play(scenario("overlapping", 2))
    assert (waiting.times(0), waiting.times(1)) == (close(2.002), close(1.002))


def test_what_is_on_its_way_does_not_change() -> None:
    assert play(scenario("changed_after_sending", 2)).rows(1) == [{"got": 250.0}]


def test_collectives_meet_whoever_comes_when() -> None:
    found = play(scenario("meet", mesh={"replicas": 2, "shards": 3}))
    x = [drawn(worker) for worker in range(6)]
    total = pairwise_sum(x)
    for worker in range(6):
        replica, shard = divmod(worker, 3)
        mine = x[3 * replica : 3 * replica + 3]
        sums = pairwise_sum(mine)
        columns = [x[shard], x[shard + 3]]
        expected = [
            total,
            sums / 3,
            torch.cat(mine, -1),
            sums[:, 4 * shard : 4 * shard + 4],
            torch.cat([one[:, 6 * replica : 6 * replica + 6] for one in columns], -2),
            x[5],
        ]
        assert found.rows(worker)[0]["values"] == [value.tolist() for value in expected]
    # the first one starts when worker 5 comes; groups are booked one by one
    assert found.booked[0].start == 1.25
    columns_ = found.ledger.columns()
    assert columns_["groups"] == [1] * len(found.booked)
    groups = {"workers": 1, "shards": 2, "replicas": 3}
    assert len(found.booked) == sum(groups[axis] for axis in ["workers", *["shards"] * 3, "replicas", "workers"])
    # ring: 2 (n-1) S and (n-1) S in all, of 96 bytes each and 288 gathered
    sent: dict[str, int] = {}
    for one in found.booked:
        sent[one.entry.op] = sent.get(one.entry.op, 0) + one.entry.sent_bytes_total
    assert sent == {
        "all_reduce": 2 * 5 * 96 + 2 * 2 * 2 * 96,
        "all_gather": 2 * 2 * 288,
        "reduce_scatter": 2 * 2 * 96,
        "all_to_all": 3 * 96,
        "broadcast": 5 * 96,
    }
    assert found.parcels == 0


def test_measurements_are_free_but_meet() -> None:
    found = play(scenario("measuring", 3, bandwidth="1kbit/s"))
    assert [found.times(worker) for worker in range(3)] == [[0.5]] * 3
    assert [found.rows(worker) for worker in range(3)] == [[{"total": 3.0}]] * 3
    assert len(found.ledger) == 0


def test_together_waits_and_works_at_once() -> None:
    found = play(scenario("receive_and_compute", 2))
    assert found.rows(1) == [{"source": 0}]
    # the message takes 1.002 s, the work 1.5 s
    assert found.times(1) == close(1.5)


@pytest.mark.parametrize("program", ["other_size", "other_shape", "other_op"])
def test_members_must_agree_on_a_collective(program: str) -> None:
    with pytest.raises(ProgramError, match=r"worker 0 .* worker 1 .*'x'"):
        play(scenario(program, 3))


def test_members_are_named_by_their_number_not_by_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(type(scenario("meet").schedule).__module__)

    async def program(worker: Worker) -> None:
        await worker.labelled("meet", "x").mesh.shards.sum(torch.ones((2, 5) if worker.index != 3 else (10,)))

    monkeypatch.setattr(module, "meet", program)
    with pytest.raises(ProgramError, match=r"worker 2 .* worker 3 .*'x'"):
        play(scenario("meet", mesh={"replicas": 2, "shards": 2}))


def test_messages_go_to_workers_only() -> None:
    with pytest.raises(ProgramError, match="sends a message to worker 7; expected 0 to 2"):
        play(scenario("nobody_there", 3))


def test_mistakes_of_the_user_name_the_worker() -> None:
    with pytest.raises(ProgramError, match="worker 1 raised ZeroDivisionError: a mistake of the user"):
        play(scenario("user_mistake", 3))


EVERYBODY = (
    "worker 0 waits for a message from worker 1 tagged 'go'",
    "worker 1 waits in all_reduce 'x' on workers for workers 0, 2, 3",
    "worker 2 waits for a message from anybody",
)


def test_a_deadlock_names_everybody_and_saves_what_happened(tmp_path: Path) -> None:
    with pytest.raises(DeadlockError) as raised:
        run(scenario("stuck"), out=tmp_path / "run", progress=False)
    message = str(raised.value)
    for words in ("deadlock at 0.003 simulated seconds", *EVERYBODY, "everything up to step 0 is in"):
        assert words in message
    assert "worker 3 waits" not in message
    assert raised.value.exit_status == 3
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert summary["sent_bytes_total"] == 1000
    ledger = pq.read_table(tmp_path / "run" / "ledger.parquet").to_pylist()
    assert [(row["purpose"], row["sent_bytes_total"]) for row in ledger] == [("push", 1000)]


def test_rows_go_into_the_run_folder(tmp_path: Path) -> None:
    folder = run(scenario("talk", 3), out=tmp_path / "run", progress=False)
    steps = pq.read_table(folder / "steps.parquet").to_pylist()
    ledger = pq.read_table(folder / "ledger.parquet").to_pylist()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "done"
    assert summary["params_sha256"] is not None
    assert [row["simulated_seconds"] for row in steps] == sorted(row["simulated_seconds"] for row in steps)
    # 3 workers, 4 turns: a message of 96 bytes each, and an all-reduce of the three
    assert sum(row["sent_bytes_total"] for row in ledger) == 4 * (3 * 96 + 2 * 2 * 96)
    assert summary["sent_bytes_total"] == 4 * (3 * 96 + 2 * 2 * 96)


# -- several actors, and wall time ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("actors", [1, 2])
def test_actors_change_nothing(actors: int) -> None:
    for program, workers in (("talk", 5), ("changed_after_sending", 2)):
        here = play(scenario(program, workers))
        there = play(scenario(program, workers, engine={"name": "ray", "actors": actors}))
        assert there.noted == here.noted
        assert there.booked == here.booked
        assert there.events == here.events
        assert there.clocks == here.clocks
        assert there.ledger.sha256() == here.ledger.sha256()
        assert there.parcels == here.parcels == 0


@pytest.mark.usefixtures("cluster")
def test_errors_come_back_from_actors() -> None:
    engine = {"name": "ray", "actors": 2}
    with pytest.raises(ProgramError, match="worker 1 raised ZeroDivisionError: a mistake of the user"):
        play(scenario("user_mistake", 3, engine=engine))
    with pytest.raises(DeadlockError) as raised:
        play(scenario("stuck", engine=engine))
    for words in EVERYBODY:
        assert words in str(raised.value)


def test_blocks_keep_no_collective_that_all_their_workers_have() -> None:
    """Also when the other members are in other blocks."""

    async def once(worker: Worker) -> None:
        worker.observe(got=(await worker.mesh.workers.sum(torch.ones(2))).tolist())

    wiring = Wiring.from_names(dict.fromkeys(("params", "grads", "factors", "statistics"), "fp32"))
    members = ([0, 1], [2])
    blocks = [
        LiveBlock(TalkProgram(once), [inline_worker(MeshShape(3, 1), worker, 0) for worker in mine], wiring)
        for mine in members
    ]
    asked = [one for block, mine in zip(blocks, members, strict=True) for one in block.resume(dict.fromkeys(mine))]
    answer = (Meeting(0, tuple(one.parcels[0] for one in asked), (0, 1, 2)),)
    for block, mine in zip(blocks, members, strict=True):
        ended = block.resume(dict.fromkeys(mine, answer))
        assert [one.observed for one in ended] == [[{"got": [3.0, 3.0]}]] * len(mine)
        assert block._met == {}
        assert block._waves == {}


class FakeTime:
    """A clock that moves by sleeping alone."""

    def __init__(self) -> None:
        self.now = 1000.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


def test_a_paced_run_follows_simulated_time_exactly() -> None:
    time = FakeTime()
    follows, seen = follow(time.clock, time.sleep), []

    def hold(simulated: float) -> None:
        follows(simulated)
        seen.append((time.now - 1000.0, simulated))

    found = play(scenario("token_ring", 3), hold)
    assert len(seen) >= 9
    assert [wall for wall, _ in seen] == [pytest.approx(simulated, abs=1e-9) for _, simulated in seen]
    assert max(simulated for _, simulated in seen) == max(one.end for one in found.booked)


def test_a_late_machine_never_sleeps() -> None:
    time = FakeTime()
    hold = follow(time.clock, time.sleep)
    time.now += 5.0
    hold(4.0)
    assert time.now == 1005.0
    hold(6.0)
    assert time.now == 1006.0


def test_a_paced_run_takes_the_time_it_simulates(tmp_path: Path) -> None:
    """For real: about two seconds of messages over slow links."""
    network = {"bandwidth": "5kbit/s", "latency": "10ms", "mode": "paced"}
    folder = run(scenario("talk", 3, network=network), out=tmp_path / "run", progress=False)
    summary = json.loads((folder / "summary.json").read_text())
    steps = pq.read_table(folder / "steps.parquet").to_pylist()
    simulated = summary["simulated_seconds"]
    assert 1.5 < simulated < 3
    assert steps[-1]["wall_seconds"] == pytest.approx(simulated, rel=0.1)
    assert steps[-1]["wall_seconds"] > simulated - 1e-3

"""The asynchronous parameter server: the order of updates by hand, staleness, bytes, and a replay of the mathematics.

``peak_flops`` is set so that a training worker of speed 1 computes for one second.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from simdist.assembly import build_hosts, build_job, build_task, build_timeline
from simdist.cli import app
from simdist.communication.ledger import Ledger, one_plan
from simdist.communication.plans import Ring
from simdist.execution.live import LiveRun
from simdist.running import run
from simdist.scenario import Scenario
from simdist.workloads import Teacher

TEACHER = {"name": "teacher", "rows": 5, "columns": 4, "matrices": 2, "batch": 3}
NUMBERS = 2 * 5 * 4 + 5
UNITS = Teacher.model_validate(TEACHER).build(0, torch.float64, torch.device("cpu")).units
FLOPS = sum(unit.forward_flops + unit.backward_flops for unit in UNITS)


def scenario(workers: int = 3, steps: int = 10, speeds: dict[int, float] | None = None, **changes: Any) -> Scenario:
    return Scenario.from_dict(
        {
            "steps": steps,
            "dtype": "float64",
            "workload": TEACHER,
            "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
            "mesh": {"replicas": workers},
            "schedule": "async_server",
            "wire": {"params": "fp64", "grads": "fp64"},
            # as good as no network, and a server whose own work takes no time
            "network": {"bandwidth": "1000000Gbit/s", "latency": 0},
            "compute": {"device": "custom", "peak_flops": FLOPS, "mfu": 1.0, "speeds": {0: 1e12, **(speeds or {})}},
            **changes,
        }
    )


def tables(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    """Return steps, ledger, the server's notes and the summary of a run folder."""
    steps, ledger, notes = (
        pq.read_table(folder / f"{name}.parquet").to_pylist() for name in ("steps", "ledger", "diagnostics")
    )
    return steps, ledger, notes, json.loads((folder / "summary.json").read_text())


@pytest.fixture
def go(tmp_path: Path) -> Any:
    """Run a scenario and return its tables."""
    return lambda chosen: tables(run(chosen, out=tmp_path / "run", progress=False))


def test_updates_come_in_the_order_of_time(go: Any) -> None:
    """Worker 1 pushes at 1, 2, 3, ... seconds, worker 2 every 10/3 seconds."""
    steps, _, notes, _ = go(scenario(speeds={2: 0.3}))
    assert [row["worker"] for row in notes] == [1, 1, 1, 2, 1, 1, 1, 2, 1, 1]
    # worker 2 computes on version 0 while 1, 2, 3 are made, then on version 4 while 5, 6, 7 are
    assert [row["staleness"] for row in notes] == [0, 0, 0, 3, 1, 0, 0, 3, 1, 0]
    assert [row["step"] for row in notes] == [row["step"] for row in steps] == list(range(1, 11))
    seconds = [1, 2, 3, 10 / 3, 4, 5, 6, 20 / 3, 7, 8]
    assert [row["simulated_seconds"] for row in steps] == pytest.approx(seconds, rel=1e-9)


def test_a_slow_worker_makes_fewer_updates_on_older_parameters(go: Any) -> None:
    steps, _, notes, _ = go(scenario(5, 40, {4: 0.23}, network={"bandwidth": "1Mbit/s", "latency": "1ms"}))
    made = Counter(row["worker"] for row in notes)
    assert made[4] < min(made[worker] for worker in (1, 2, 3)) / 3
    mean = {w: sum(row["staleness"] for row in notes if row["worker"] == w) / made[w] for w in made}
    # equal workers take turns: two others come between; while worker 4 computes they make about 3 / 0.23 updates
    assert all(1 <= mean[worker] <= 3 for worker in (1, 2, 3))
    assert mean[4] > 9
    times = [row["simulated_seconds"] for row in steps]
    assert times == sorted(times)
    assert all(row["compute_seconds"] >= 0 and row["exposed_comm_seconds"] >= 0 for row in steps)


@pytest.mark.parametrize(("workers", "steps"), [(3, 10), (2, 4), (5, 1), (6, 3)])
@pytest.mark.parametrize(("up", "down"), [("fp64", "fp64"), ("bf16", "fp32")])
def test_bytes_are_one_gradient_up_and_one_model_down_per_push(
    go: Any, workers: int, steps: int, up: str, down: str
) -> None:
    """Also with fewer updates than workers: every worker's last push is answered by a dismissal."""
    size = {"bf16": 2, "fp32": 4, "fp64": 8}
    rows, ledger, _, summary = go(scenario(workers, steps, wire={"grads": up, "params": down}))
    pushes = steps + workers - 2
    for purpose, codec in (("grad_push", up), ("param_pull", down)):
        mine = [row for row in ledger if row["purpose"] == purpose]
        assert [row["sent_bytes_total"] for row in mine] == [NUMBERS * size[codec]] * pushes
        assert {(row["op"], row["codec"], row["plan"], row["group_size"]) for row in mine} == {
            ("send", codec, "direct", 2)
        }
    assert len(ledger) == 2 * pushes
    assert summary["sent_bytes_total"] == pushes * NUMBERS * (size[up] + size[down])
    assert summary["sent_bytes_per_worker_per_step"] == summary["sent_bytes_total"] / workers / steps
    assert len(rows) == summary["steps"] == steps
    # what comes after the last update is in the ledger and the summary, but in no step
    assert rows[-1]["sent_bytes_total"] < summary["sent_bytes_total"]
    assert rows[-1]["val_loss"] is not None


def trained(chosen: Scenario) -> tuple[dict[str, Tensor], list[tuple[int, int]]]:
    """Run a scenario and return the final parameters and (worker, staleness) of each update."""
    notes: list[tuple[int, int]] = []

    def tell(booked: Any, noted: Any) -> None:
        notes.extend((note.row["worker"], note.row["staleness"]) for note in noted if "staleness" in note.row)

    job = build_job(chosen, build_task(chosen))
    with build_hosts(chosen, job) as hosts:
        live = LiveRun(hosts, build_timeline(chosen), Ledger(chosen.mesh.shape, one_plan(chosen.mesh.shape, Ring())))
        live.run(range(chosen.workers), tell)
    assert live._parcels == {}
    assert live.params is not None
    return live.params, notes


def replay(chosen: Scenario, notes: list[tuple[int, int]]) -> dict[str, Tensor]:
    """Make the same updates one after the other, by hand: SGD with momentum 0.9 on the versions that were read."""
    task = chosen.workload.build(chosen.seed, torch.float64, torch.device("cpu"))
    versions = [task.initial()]
    momentum = {name: torch.zeros_like(x) for name, x in versions[0].items()}
    pushed: Counter[int] = Counter()
    for worker, staleness in notes:
        pushed[worker] += 1
        read = {name: x.clone().requires_grad_() for name, x in versions[len(versions) - 1 - staleness].items()}
        loss = task.loss(read, task.batch(worker, pushed[worker]))
        found = dict(zip(read, torch.autograd.grad(loss, list(read.values())), strict=True))
        momentum = {name: 0.9 * m + found[name] for name, m in momentum.items()}
        weight = 1 / math.sqrt(1 + staleness) if "inverse_sqrt" in repr(chosen.schedule) else 1.0
        versions.append({name: x - 0.05 * weight * momentum[name] for name, x in versions[-1].items()})
    return versions[-1]


@pytest.mark.parametrize("weight", ["none", "inverse_sqrt"])
@pytest.mark.parametrize(("workers", "speeds"), [(3, {2: 0.3}), (4, {1: 0.7, 3: 0.4})])
def test_parameters_are_those_of_the_same_updates_by_hand(weight: str, workers: int, speeds: dict[int, float]) -> None:
    chosen = scenario(workers, 12, speeds, schedule={"name": "async_server", "staleness_weight": weight})
    found, notes = trained(chosen)
    assert len(notes) == 12
    assert max(staleness for _, staleness in notes) >= 3
    expected = replay(chosen, notes)
    assert found.keys() == expected.keys()
    for name, x in found.items():
        torch.testing.assert_close(x, expected[name], rtol=0, atol=1e-12)


def test_stale_gradients_weigh_less_on_request(go: Any) -> None:
    steps, _, notes, _ = go(
        scenario(speeds={2: 0.3}, schedule={"name": "async_server", "staleness_weight": "inverse_sqrt"})
    )
    assert [row["lr"] for row in steps] == pytest.approx([0.05 / math.sqrt(1 + row["staleness"]) for row in notes])
    assert steps[3]["lr"] == pytest.approx(0.025)


@pytest.mark.parametrize("workers", [2, 5])
def test_more_bandwidth_is_never_slower_among_equals(workers: int) -> None:
    """No law for unequal workers: there another order of updates can make a given number of them end later."""
    ends = []
    for bandwidth in ("1kbit/s", "10kbit/s", "100kbit/s", "1Mbit/s", "1Gbit/s", "1000000Gbit/s"):
        chosen = scenario(workers, 12, network={"bandwidth": bandwidth, "latency": 0})
        timeline = build_timeline(chosen)
        with build_hosts(chosen, build_job(chosen, build_task(chosen))) as hosts:
            LiveRun(hosts, timeline, Ledger(chosen.mesh.shape, one_plan(chosen.mesh.shape, Ring()))).run(
                range(workers), lambda *_: None
            )
        ends.append(timeline.now)
    assert ends == sorted(ends, reverse=True)
    # no network left: rounds of one second in which every training worker makes an update, and the last pushes
    assert ends[-1] == pytest.approx({2: 12, 5: 4}[workers], rel=1e-6)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        app(list(arguments), prog_name="simdist")
    message = capsys.readouterr().err
    assert ended.value.code == 2, message
    assert "Traceback" not in message
    return message


@pytest.mark.parametrize(("replicas", "shards"), [(2, 2), (1, 2), (1, 1)])
def test_meshes_that_do_not_fit(capsys: pytest.CaptureFixture[str], tmp_path: Path, replicas: int, shards: int) -> None:
    file = tmp_path / "scenario.yaml"
    file.write_text(scenario().to_yaml())
    mesh = [f"--set=mesh.replicas={replicas}", f"--set=mesh.shards={shards}", "--set=compute.speeds={}"]
    message = refused(capsys, "run", str(file), *mesh, "--quiet", "--out", str(tmp_path / "run"))
    assert f"got a mesh of {replicas} replicas x {shards} shards; expected 2 or more replicas x 1 shard" in message


def test_no_stacked_engine(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "scenario.yaml"
    file.write_text(scenario().to_yaml())
    message = refused(capsys, "run", str(file), "--engine=stacked", "--out", str(tmp_path / "run"))
    assert "engine.name: got 'stacked' with schedule 'async_server'" in message
    assert not (tmp_path / "run").exists()

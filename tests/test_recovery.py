"""kill -9 of an actor, a node, or the driver at a random step: what goes on from there ends with the same bits.

Every test is repeated SIMDIST_KILL_ROUNDS times (default 1) with other draws; each prints its seed, and
SIMDIST_KILL_SEED repeats it.
"""

from __future__ import annotations

import json
import os
import random
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from simdist.running import run
from simdist.scenario import Scenario
from simdist.yaml_text import dump
from tests.execution.ray_nodes import cluster_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROUNDS = range(int(os.environ.get("SIMDIST_KILL_ROUNDS", "1")))
STEPS = 8

#: a workload that has a process killed once, as a file says: some moments after a worker asked for a batch
MORTAL = """
import os
import signal
import threading
from pathlib import Path
from simdist.workloads.teacher import Teacher, TeacherTask


class Mortal(Teacher):
    name: str = "mortal"
    plan: str

    def build(self, seed, dtype, device):
        return MortalTask(self, seed, dtype, device)


def kill(pids):
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


class MortalTask(TeacherTask):
    def batch(self, worker, step):
        plan = Path(self.settings.plan)
        if step > 0 and plan.is_file():
            at, whose, delay, victim = plan.read_text().split()
            if (step, worker) == (int(at), int(whose)):
                plan.unlink()
                # an actor's parent is its node's raylet
                pids = {"actor": [os.getpid()], "node": [os.getppid(), os.getpid()]}.get(victim) or [int(victim)]
                if float(delay) == 0:
                    kill(pids)
                threading.Timer(float(delay), kill, [pids]).start()
        return super().batch(worker, step)
"""

#: a simdist whose process is killed at the n-th time it touches the disk for a checkpoint
TORN = """
import os, signal, sys
from simdist import cli
from simdist.results import checkpoints

left = int(sys.argv.pop(1))

def counted(work):
    def done(*arguments):
        global left
        left -= 1
        if left == 0:
            # some bytes are on the disk, the rest is not
            if isinstance(arguments[-1], bytes):
                arguments[0].write_bytes(arguments[-1][: len(arguments[-1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return work(*arguments)
    return done

for name in ("write_whole", "sync"):
    setattr(checkpoints, name, counted(getattr(checkpoints, name)))
cli.main()
"""


@pytest.fixture
def draw() -> random.Random:
    """Random choices of one round."""
    seed = os.environ.get("SIMDIST_KILL_SEED") or secrets.randbits(32)
    print(f"SIMDIST_KILL_SEED={seed}")
    return random.Random(int(seed))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a folder with the workload."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "mortal.py").write_text(MORTAL)
    monkeypatch.chdir(folder)
    return folder


def scenario(project: Path, engine: dict[str, Any], every: int) -> Scenario:
    plan = project.parent / "plan"  # outside of the project: all see the same one
    return Scenario.from_dict(
        {
            "steps": STEPS,
            "workload": {
                "name": f"{project}/mortal.py:Mortal",
                "plan": str(plan),
                "rows": 9,
                "columns": 8,
                "matrices": 2,
            },
            "mesh": {"replicas": 2, "shards": 2},
            # state of every kind: momenta, warm factors, residuals, random rounding
            "optimizer": {"name": "orth_dion", "lr": 0.02, "rank": 2},
            "compression": {"replicas": {"name": "error_feedback"}},
            "wire": {"grads": "int8"},
            "evaluation": {"every": 3},
            "engine": engine,
            "checkpoint": {"every": every},
        }
    )


def plan(project: Path, draw: random.Random, victim: str) -> float:
    """Draw when to kill, and return how long after a worker's batch that is."""
    delay = draw.choice([0.0, 0.0, draw.uniform(0.0, 0.5)])
    text = f"{draw.randint(1, STEPS)} {draw.randrange(4)} {delay} {victim}"
    print(f"plan: step, worker, delay, victim = {text}")
    draft = project.parent / "draft"
    draft.write_text(text)
    draft.replace(project.parent / "plan")
    return delay


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    assert found["status"] == "done"
    return found


KEYS = ("params_sha256", "ledger_sha256", "simulated_seconds", "final_train_loss", "final_val_loss", "steps")


@cache
def _undisturbed(base: Path) -> dict[str, Any]:
    project = base / "undisturbed"
    project.mkdir()
    (project / "mortal.py").write_text(MORTAL)
    return summary(run(scenario(project, {"name": "inline"}, 3), out=base / "run", progress=False))


@pytest.fixture
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run has to come to: that of one process that nobody killed."""
    found = _undisturbed(tmp_path_factory.getbasetemp())
    return {key: found[key] for key in KEYS}


def same(folder: Path, expected: dict[str, Any]) -> dict[str, Any]:
    found = summary(folder)
    assert {key: found[key] for key in KEYS} == expected
    return found


@pytest.mark.parametrize("_", ROUNDS)
def test_an_actor_is_killed(
    _: int, draw: random.Random, project: Path, tmp_path: Path, expected: dict[str, Any]
) -> None:
    delay = plan(project, draw, "actor")
    chosen = scenario(project, {"name": "ray", "actors": draw.choice([1, 2, 3])}, draw.randint(1, 4))
    found = same(run(chosen, out=tmp_path / "run", progress=False), expected)
    if delay == 0:
        (recovery,) = found["recoveries"]
        assert "which held workers" in recovery["reason"]
        assert "killed, or crashed" in recovery["reason"]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A cluster of a head and two nodes with two CPUs each; what is killed is replaced by the test."""
    with cluster_of(2, 2) as cluster:
        yield cluster


@pytest.mark.parametrize("_", ROUNDS)
def test_a_node_is_killed(
    _: int, draw: random.Random, project: Path, tmp_path: Path, nodes: Any, expected: dict[str, Any]
) -> None:
    """The run goes on with what is left: all four actors on the other node."""
    from tests.execution.ray_nodes import STORE

    delay = plan(project, draw, "node")
    chosen = scenario(project, {"name": "ray", "actors": 4}, draw.randint(1, 4))
    try:
        found = same(run(chosen, out=tmp_path / "run", progress=False, ray_address=nodes.address), expected)
    finally:
        for node in list(nodes.worker_nodes):
            if node.all_processes["raylet"][0].process.poll() is not None:
                nodes.remove_node(node, allow_graceful=False)
                nodes.add_node(num_cpus=2, object_store_memory=STORE)
    if delay == 0:
        reason = found["recoveries"][0]["reason"]
        assert "which held workers" in reason
        assert re.search(r"died with its node [\d.]+, which does not answer any more", reason)


def simdist(*arguments: Any, kill_at: int | None = None) -> subprocess.Popen[str]:
    """Start simdist in a process of its own, whose standard error is piped."""
    program = ["-m", "simdist.cli"] if kill_at is None else ["-c", TORN, str(kill_at)]
    command = [sys.executable, *program, *map(str, arguments), "--quiet"]
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path})


def resumed(folder: Path, *arguments: str) -> str:
    """Resume a run and return what it said."""
    process = simdist("resume", folder, *arguments)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 0, said
    return said


@pytest.mark.parametrize("_", ROUNDS)
def test_the_driver_is_killed(
    _: int, draw: random.Random, project: Path, tmp_path: Path, expected: dict[str, Any]
) -> None:
    engine = draw.choice([{"name": "inline"}, {"name": "ray", "actors": 2}])
    file = tmp_path / "scenario.yaml"
    file.write_text(dump(scenario(project, engine, draw.randint(1, 4)).to_dict()))
    process = simdist("run", file, "--out", tmp_path / "run")
    plan(project, draw, str(process.pid))
    said = process.communicate(timeout=300)[1]
    assert process.returncode in (-signal.SIGKILL, 0), said  # 0: it was faster than a late kill
    # with any other engine
    resumed(tmp_path / "run", *draw.choice([[], ["--engine=inline"], ["--engine=ray", "--set=engine.actors=3"]]))
    same(tmp_path / "run", expected)


@pytest.mark.parametrize("_", ROUNDS)
def test_the_driver_is_killed_while_it_saves(
    _: int, draw: random.Random, project: Path, tmp_path: Path, expected: dict[str, Any]
) -> None:
    """What was being written is no checkpoint; and should the disk lose part of one, it is refused, and named."""
    file = tmp_path / "scenario.yaml"
    chosen = scenario(project, {"name": "inline"}, 1)
    file.write_text(dump({**chosen.to_dict(), "checkpoint": {"every": 1, "keep": 9}}))
    # a checkpoint takes nine of them; two are whole by then
    process = simdist("run", file, "--out", tmp_path / "run", kill_at=draw.randint(19, 60))
    said = process.communicate(timeout=300)[1]
    assert process.returncode == -signal.SIGKILL, said
    whole = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert len(whole) >= 2
    torn = draw.choice(sorted(whole[-1].iterdir()))
    torn.write_bytes(torn.read_bytes()[: draw.randrange(torn.stat().st_size)])
    said = resumed(tmp_path / "run")
    assert f"checkpoint {whole[-1]} is refused: it is torn: {torn.name}" in said
    assert f"going on after step {len(whole) - 1}, from {whole[-2].name}" in said
    same(tmp_path / "run", expected)

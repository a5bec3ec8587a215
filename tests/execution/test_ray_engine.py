"""The Ray engine: bit for bit the inline engine for any number of actors, and clear words when something breaks."""

from __future__ import annotations

import functools
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from simdist.assembly import build_engine, build_job, build_program, build_task
from simdist.errors import InputError, ProgramError, RunError, WorkersLost
from simdist.execution.blocks import split_into_blocks
from simdist.execution.engine import LocalEngine
from simdist.execution.ray_cluster import connect
from simdist.execution.ray_engine import RayEngine
from simdist.execution.wiring import Wiring
from simdist.optimizers import optimizers
from simdist.program import MeshShape, Worker
from simdist.program.program import LockstepProgram
from simdist.results.recorder import params_sha256
from simdist.running import run
from simdist.scenario import Scenario
from tests.execution.needs import NEEDS

GPT = {"name": "byte_gpt", "width": 16, "depth": 1, "heads": 2, "context": 16, "batch": 2, "validation_batches": 3}
TEACHER = {"name": "teacher", "rows": 9, "columns": 8, "matrices": 3}

#: a workload that breaks in an actor, but not in the driver, which builds it too
FRAGILE = """
import os
import torch
from simdist.errors import InputError
from simdist.workloads.teacher import Teacher, TeacherTask


class Fragile(Teacher):
    name: str = "fragile"
    driver: int
    how: str

    def build(self, seed, dtype, device):
        if self.how == "data" and os.getpid() != self.driver:
            raise InputError("the corpus is missing on this node; expected it under /data")
        return FragileTask(self, seed, dtype, device)


class FragileTask(TeacherTask):
    def batch(self, worker, step):
        if os.getpid() != self.settings.driver and (worker, step) == (2, 2):
            if self.settings.how == "dies":
                os._exit(1)
            if self.settings.how == "memory":
                torch.empty(10**15)
            if self.settings.how == "raises":
                raise ZeroDivisionError("a mistake of the user")
        return super().batch(worker, step)
"""


def scenario(engine: dict[str, Any], **changes: Any) -> Scenario:
    return Scenario.from_dict(
        {
            "steps": 3,
            "workload": TEACHER,
            "mesh": {"shards": 4},
            "optimizer": {"name": "adamw", "lr": 0.01},
            "engine": engine,
            **changes,
        }
    )


@pytest.fixture
def fragile(tmp_path: Path) -> Any:
    """Return a function that makes a scenario whose workload breaks in one way."""
    file = tmp_path / "fragile.py"
    file.write_text(FRAGILE)

    def make(how: str, **changes: Any) -> Scenario:
        workload = {"name": f"{file}:Fragile", "driver": os.getpid(), "how": how}
        engine = {"name": "ray", "actors": 1 if how == "data" else 2, "retries": 0}
        return scenario(engine, workload=workload, **changes)

    return make


def summary_of(chosen: Scenario, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run(chosen, out=folder, progress=False) / "summary.json").read_text())
    return found


# -- tests that start and stop an embedded Ray of their own; they come before the shared one -------------------------


def test_an_interrupted_run_shuts_its_ray_down_and_leaves_no_folder_of_its_own() -> None:
    assert not ray.is_initialized()
    chosen = scenario({"name": "ray", "actors": 1})
    engine = build_engine(chosen, build_job(chosen, build_task(chosen)))
    folders: list[Path] = []

    def interrupted() -> None:
        with engine:
            folders.append(Path(engine._folder.name))  # type: ignore[attr-defined]  # a RayEngine here
            assert folders[0].is_dir()
            for outcome in engine.steps(1, 3):
                assert outcome.step == 1
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not ray.is_initialized()
    assert not folders[0].exists()


def test_an_address_where_nothing_answers_is_refused_at_once() -> None:
    assert not ray.is_initialized()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # taken, but not listening: connections are refused
        port = closed.getsockname()[1]
        for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
            began = time.monotonic()
            with pytest.raises(InputError, match=rf"--ray-address: got '{address}', where nothing answers.*ray start"):
                connect(address, 1)
            assert time.monotonic() - began < 5
    assert not ray.is_initialized()


@pytest.mark.parametrize("address", ["127.0.0.1:port", "127.0.0.1:99999999"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(InputError, match=f"got '{address}'"):
        connect(address, 1)


# -- one embedded Ray for all the rest -------------------------------------------------------------------------------


ORTH_DION = {
    "workload": GPT,
    "mesh": {"replicas": 2, "shards": 2},
    "optimizer": {"name": "orth_dion", "lr": 0.02, "rank": 2},
    "wire": {"params": "bf16", "factors": "bf16"},
    "diagnostics": {"every": 1},
}
EQUAL = (
    "params_sha256",
    "ledger_sha256",
    "final_train_loss",
    "final_val_loss",
    "simulated_seconds",
    "sent_bytes_total",
)


@pytest.fixture(scope="module")
def inline_summary(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return summary_of(scenario({"name": "inline"}, **ORTH_DION), tmp_path_factory.mktemp("inline") / "run")


@pytest.mark.parametrize(
    "engine",
    [
        {"actors": 1},
        pytest.param({"actors": 2}, marks=pytest.mark.slow),
        {"actors": 3},
        pytest.param({"workers_per_actor": 1}, marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.usefixtures("cluster")
def test_any_number_of_actors_gives_the_inline_run(
    engine: dict[str, Any], inline_summary: dict[str, Any], tmp_path: Path
) -> None:
    got = summary_of(scenario({"name": "ray", **engine}, **ORTH_DION), tmp_path / "run")
    assert {key: got[key] for key in EQUAL} == {key: inline_summary[key] for key in EQUAL}
    assert got["engine"] == "ray"
    # each process has torch in memory
    assert got["peak_rss_bytes"] > (1 + engine.get("actors", 4)) * 10**8
    assert ray.is_initialized(), "a Ray that was there before stays"


class Several(LockstepProgram):
    """Trains several jobs side by side, one after the other in every step: an actor takes seconds to start."""

    def __init__(self, scenarios: list[dict[str, Any]]) -> None:
        chosen = [Scenario.from_dict(data) for data in scenarios]
        self.programs = [build_program(each, build_job(each, build_task(each))) for each in chosen]

    async def start(self, worker: Worker) -> Any:
        return [await program.start(worker) for program in self.programs]

    async def step(self, worker: Worker, state: Any, step: int) -> tuple[Any, dict[str, Any]]:
        done = [await program.step(worker, own, step) for program, own in zip(self.programs, state, strict=True)]
        return [own for own, _ in done], {f"{i} {k}": v for i, (_, row) in enumerate(done) for k, v in row.items()}

    async def parameters(self, worker: Worker, state: Any) -> dict[str, Any]:
        found = [await program.parameters(worker, own) for program, own in zip(self.programs, state, strict=True)]
        return {f"{i} {name}": x for i, params in enumerate(found) for name, x in params.items()}


@pytest.mark.parametrize(
    ("replicas", "shards", "blocks"),
    [
        # the replica groups of both columns cross the blocks, which meet them in opposite orders
        (3, 2, [range(3), range(3, 6)]),
        pytest.param(1, 4, [range(1), range(1, 4)], marks=pytest.mark.slow),
        pytest.param(4, 1, [range(2), range(2, 3), range(3, 4)], marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("cluster")
def test_every_optimizer_trains_to_the_inline_bits(replicas: int, shards: int, blocks: list[range]) -> None:
    scenarios = [
        scenario(
            {"name": "inline"},
            mesh={"replicas": replicas, "shards": shards},
            optimizer={"name": name, "lr": 0.01, **NEEDS.get(name, {})},
        ).to_dict()
        for name in optimizers.names()
    ]
    wiring = Wiring.from_names({"params": "bf16", "grads": "fp32", "factors": "bf16", "statistics": "fp32"})
    mesh = MeshShape(replicas, shards)
    # by value: an actor cannot import a test
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    found = []
    for engine in (
        LocalEngine.inline(Several(scenarios), mesh, wiring, 0),
        RayEngine(functools.partial(Several, scenarios), mesh, wiring, 0, blocks),
    ):
        with engine:
            outcomes = list(engine.steps(1, 3))
            found.append((params_sha256(engine.parameters()), [(each.ops, each.report) for each in outcomes]))
    assert found[0] == found[1]


@pytest.mark.usefixtures("cluster")
def test_an_error_of_the_user_in_an_actor_comes_back_as_it_is(fragile: Any, tmp_path: Path) -> None:
    """Raised while the engine starts; that it is closed then, test_lockstep.py says."""
    with pytest.raises(InputError, match="the corpus is missing on this node; expected it under /data"):
        run(fragile("data"), out=tmp_path / "run", progress=False)


@pytest.mark.usefixtures("cluster")
def test_an_actor_that_dies_is_named_with_its_workers(fragile: Any, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(RunError, match="Ray actor 1, which held workers 2 to 3, died") as caught:
        run(fragile("dies", steps=20), out=tmp_path / "run", progress=False)
    assert time.monotonic() - began < 30
    assert "everything up to step 1 is in" in str(caught.value)
    saved = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (saved["status"], saved["steps"]) == ("failed", 1)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_an_actor_of_an_irregular_program_that_dies_is_named(fragile: Any, tmp_path: Path) -> None:
    """Not the one that waits for a tensor of it, nor a lost tensor."""
    began = time.monotonic()
    chosen = fragile(
        "dies", steps=20, mesh={"replicas": 4}, schedule="async_server", optimizer={"name": "sgd", "lr": 0.1}
    )
    with pytest.raises(WorkersLost, match=r"Ray actor 1, which held workers 2 to 3, died \(process"):
        run(chosen, out=tmp_path / "run", progress=False)
    assert time.monotonic() - began < 60


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_an_actor_that_is_killed_from_outside_is_named(tmp_path: Path) -> None:
    chosen = scenario({"name": "ray", "actors": 3}, steps=2000)
    engine = build_engine(chosen, build_job(chosen, build_task(chosen)))

    def killed() -> None:
        for _ in engine.steps(1, 2000):
            ray.kill(engine._group._actors[0])  # type: ignore[attr-defined]  # as above

    with engine:
        began = time.monotonic()
        with pytest.raises(WorkersLost, match="Ray actor 0, which held workers 0 to 1, died"):
            killed()
        assert time.monotonic() - began < 30


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_mistake_in_a_users_code_says_what_and_where(fragile: Any, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(ProgramError, match="Ray actor 1 raised ZeroDivisionError: a mistake of the user"):
        run(fragile("raises"), out=tmp_path / "run", progress=False)
    assert time.monotonic() - began < 20


@pytest.mark.usefixtures("cluster")
def test_out_of_memory_in_an_actor_says_what_helps(fragile: Any, tmp_path: Path) -> None:
    helps = r"ran out of memory \(can't allocate memory: .*\); what helps: engine.name 'stacked' .*fewer engine.actors"
    with pytest.raises(RunError, match=f"Ray actor 1, which held workers 2 to 3, {helps}") as caught:
        run(fragile("memory"), out=tmp_path / "run", progress=False)
    # it would run out again
    assert not isinstance(caught.value, WorkersLost)


class Parting(LockstepProgram):
    """Worker 0 and 1 leave the last step early, so that the others wait for them."""

    async def start(self, worker: Worker) -> Any:
        return None

    async def step(self, worker: Worker, state: Any, step: int) -> tuple[Any, dict[str, Any]]:
        for part in "ab" if step < 2 or (worker.index or 0) > 1 else "a":
            await worker.mesh.shards.sum(torch.ones(3), part=part)
        return None, {}

    async def parameters(self, worker: Worker, state: Any) -> dict[str, Any]:
        return {}


@pytest.mark.usefixtures("cluster")
def test_actors_whose_programs_disagree_end_at_once() -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    wiring = Wiring.from_names(dict.fromkeys(("params", "grads", "factors", "statistics"), "fp32"))
    with RayEngine(Parting, MeshShape(1, 4), wiring, 0, [range(2), range(2, 4)]) as engine:
        began = time.monotonic()
        with pytest.raises(ProgramError, match=r"workers of a lock-step program must ask .* have ended step 2"):
            list(engine.steps(1, 2))
        assert time.monotonic() - began < 60  # of gloo's hour


@pytest.mark.usefixtures("cluster")
def test_more_actors_than_a_running_cluster_has_places_for_are_refused(tmp_path: Path) -> None:
    chosen = scenario({"name": "ray", "actors": 9}, mesh={"replicas": 9})
    with pytest.raises(InputError, match=r"engine.actors: got 9 actors, but the Ray cluster has \d+ CPUs"):
        run(chosen, out=tmp_path / "run", progress=False)


# -- how workers are dealt out ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, 5, 8, 13])
@pytest.mark.parametrize(("actors", "per_actor"), [(None, None), (1, None), (3, None), (None, 1), (None, 4)])
def test_blocks_are_contiguous_and_hold_every_worker_once(
    workers: int, actors: int | None, per_actor: int | None
) -> None:
    blocks = split_into_blocks(workers, actors, per_actor, 2)
    assert [worker for block in blocks for worker in block] == list(range(workers))
    assert all(len(block) > 0 for block in blocks)
    sizes = [len(block) for block in blocks]
    if per_actor is None:
        assert len(blocks) == min(actors or 2, workers)
        assert max(sizes) - min(sizes) <= 1
    else:
        assert set(sizes[:-1]) <= {per_actor}
        assert sizes[-1] <= per_actor

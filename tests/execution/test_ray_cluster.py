"""A run on a cluster of several nodes: blocks spread, files travel, values and bytes are those of one process."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import ray

from simdist.assembly import build_engine, build_job, build_task
from simdist.errors import InputError
from simdist.execution import ray_actors, ray_places
from simdist.execution.ray_cluster import connect, cores, disconnect
from simdist.execution.ray_places import largest_share, warn_if_crowded
from simdist.results.recorder import params_sha256
from simdist.running import run
from simdist.scenario import Scenario
from tests.execution.ray_nodes import cluster_of

#: a workload in the user's file that reads the user's data
MODEL = """
from pathlib import Path
from simdist.workloads.teacher import Teacher


class Reading(Teacher):
    name: str = "reading"
    corpus: str

    def build(self, seed, dtype, device):
        text = Path(self.corpus.removeprefix("file:")).read_text()
        return super().build(seed + len(text), dtype, device)
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A head and two nodes of two CPUs."""
    with cluster_of(2, 2) as cluster:
        yield cluster.address


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model and a text; the working directory."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "model.py").write_text(MODEL)
    (folder / "text.txt").write_text("seven c")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def away(project: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function after which the project goes as soon as Ray has been sent it: only the copies are left."""

    def connect_and_go(address: str | None, actors: int) -> bool:
        started = connect(address, actors)
        project.rename(project.with_name("gone"))
        return started

    return lambda: monkeypatch.setattr(ray_actors, "connect", connect_and_go)


def scenario(project: Path, engine: dict[str, Any], **changes: Any) -> Scenario:
    return Scenario.from_dict(
        {
            "steps": 3,
            "workload": {
                "name": f"{project}/model.py:Reading",
                "corpus": f"file:{project}/text.txt",
                "rows": 9,
                "columns": 8,
                "matrices": 3,
            },
            "mesh": {"replicas": 2, "shards": 2},
            "optimizer": {"name": "orth_dion", "lr": 0.02, "rank": 2},
            "engine": engine,
            **changes,
        }
    )


def test_blocks_are_spread_and_the_project_travels(project: Path, away: Callable[[], None], address: str) -> None:
    found = []
    for engine_settings in ({"name": "inline"}, {"name": "ray", "actors": 4}):
        chosen = scenario(project, engine_settings)
        on_ray = engine_settings["name"] == "ray"
        engine = build_engine(chosen, build_job(chosen, build_task(chosen)), address if on_ray else None)
        if on_ray:
            away()
        with engine:
            if on_ray:
                nodes = [node for node, _ in engine._group.call("node")]  # type: ignore[attr-defined]  # a RayEngine
                held = ray.util.placement_group_table().values()
                assert [each["strategy"] for each in held if each["state"] == "CREATED"] == ["SPREAD"]
            outcomes = list(engine.steps(1, 3))
            found.append((params_sha256(engine.parameters()), [(each.ops, each.report) for each in outcomes]))
    assert found[0] == found[1]
    # two blocks on each node, neighbours together
    assert [len(list(run)) for _, run in groupby(nodes)] == [2, 2]
    assert not project.exists()
    assert not ray.is_initialized(), "an attached Ray is left"


def test_places_are_given_back_after_an_error(project: Path, address: str) -> None:
    """A second group that needs every CPU gets them although the first one broke."""
    connect(address, 4)
    try:
        for _ in range(2):
            group = ray_actors.ActorGroup([range(1)] * 4, "cpu", address)
            group._places.reserve()
            assert ray.available_resources().get("CPU", 0) == 0
            group.close()
    finally:
        disconnect()


def test_a_cluster_that_is_too_small_says_what_it_has(
    project: Path, address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = scenario(project, {"name": "ray", "actors": 5}, mesh={"replicas": 5})
    with pytest.raises(InputError, match=r"got 5 actors, but the Ray cluster has 4 CPUs.*write engine.actors=4"):
        run(chosen, out=project / "runs" / "small", progress=False, ray_address=address)
    threads = scenario(project, {"name": "ray", "actors": 4, "threads": 2})
    with pytest.raises(InputError, match=r"got 4 actors of 2 CPUs each \(engine.threads\).*write engine.actors=2"):
        run(threads, out=project / "runs" / "threads", progress=False, ray_address=address)
    # others hold the places: all or nothing, within a time limit
    monkeypatch.setattr(ray_places, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(ray_places, "PLACE_SECONDS", 0.5)
    connect(address, 1)
    try:
        other = ray_places.Places(3, 1, "cpu", embedded=False)
        other.reserve()
        with pytest.raises(
            InputError, match=r"got 2 actors, .* no places for within .*: 1 of 4 CPUs are free on 3 nod"
        ):
            ray_places.Places(2, 1, "cpu", embedded=False).reserve()
        assert "simdist: waiting for places on the Ray cluster for 2 actors: 1 of 4" in capsys.readouterr().err
    finally:
        disconnect()


def test_a_working_directory_that_is_too_big_is_refused(
    project: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray._private.runtime_env import packaging

    (project / "big.bin").write_bytes(secrets.token_bytes(100_000))
    monkeypatch.setattr(packaging, "GCS_STORAGE_MAX_SIZE", 50_000)  # as if it were half a GiB
    with pytest.raises(InputError, match=rf"working directory '{project}', which cannot be sent .*list in .rayignore"):
        connect(address, 1)
    assert not ray.is_initialized()


def test_a_cluster_that_can_grow_is_waited_for(
    project: Path, address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What an autoscaler would report; Ray sees from the waiting group how many CPUs are wanted."""
    monkeypatch.setattr(ray_places, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(ray_places, "GROW_SECONDS", 0.5)
    connect(address, 1)
    try:
        assert ray_places.can_grow_to() == 0
        monkeypatch.setattr(ray_places, "can_grow_to", lambda: 64.0)
        with pytest.raises(InputError, match=r"got 6 actors, which the Ray cluster had no places for within 0.5 s"):
            ray_places.Places(6, 1, "cpu", embedded=False).reserve()
        with pytest.raises(InputError, match=r"got 65 actors, but the Ray cluster has 4 CPUs"):
            ray_places.Places(65, 1, "cpu", embedded=False).reserve()
    finally:
        disconnect()


def test_a_run_that_goes_on_after_a_loss_shares_what_is_left(project: Path, address: str) -> None:
    connect(address, 1)
    try:
        options = ray_places.Places(6, 1, "cpu", embedded=False, squeeze=True).reserve()
        assert [each["num_cpus"] for each in options] == [pytest.approx(2 / 3, abs=1e-4)] * 6
    finally:
        disconnect()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "changes"),
    [
        ({"actors": 3}, {"wire": {"grads": "bf16"}}),
        ({"actors": 3}, {"mesh": {"replicas": 4}, "schedule": "async_server", "optimizer": {"name": "sgd", "lr": 0.1}}),
    ],
    ids=["lock-step", "irregular"],
)
def test_a_run_on_a_cluster_is_the_run_in_one_process(
    project: Path,
    away: Callable[[], None],
    address: str,
    tmp_path: Path,
    engine: dict[str, Any],
    changes: dict[str, Any],
) -> None:
    found = []
    for on_ray in (False, True):
        chosen = scenario(project, {"name": "ray", **engine} if on_ray else {"name": "inline"}, **changes)
        if on_ray:
            away()
        folder = run(chosen, out=tmp_path / str(on_ray), progress=False, ray_address=address if on_ray else None)
        found.append(json.loads((folder / "summary.json").read_text()))
    equal = ("params_sha256", "ledger_sha256", "simulated_seconds", "final_train_loss")
    assert [found[1][key] for key in equal] == [found[0][key] for key in equal]


# -- without a cluster -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cpus", [[2.0], [2.0, 1.0, 0.0], [8.0, 3.0], [0.5]])
@pytest.mark.parametrize("actors", [1, 2, 3, 7])
def test_the_largest_share_fits_and_no_larger_one_does(cpus: list[float], actors: int) -> None:
    share, nodes = round(largest_share(cpus, actors) * 1e4), [round(node * 1e4) for node in cpus]  # Ray's unit
    assert sum(node // share for node in nodes) >= actors
    assert sum(node // (share + 1) for node in nodes) < actors


def test_more_actors_than_cores_are_warned_of_with_what_to_write(capsys: pytest.CaptureFixture[str]) -> None:
    warn_if_crowded(cores(), 1)
    assert capsys.readouterr().err == ""
    warn_if_crowded(cores() + 1, 1)
    said = capsys.readouterr().err
    assert said.startswith(f"simdist: warning: engine.actors: got {cores() + 1} actors on {cores()} cores")
    assert f"expected engine.actors={cores()}" in said
    warn_if_crowded(1, cores() + 1)
    assert f"expected engine.actors=1 and engine.threads={cores()}" in capsys.readouterr().err

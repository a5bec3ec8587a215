"""Runs that are refused (exit 2), fail (exit 3) or are interrupted (exit 130): what is said, and what is kept."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from simdist.cli import app
from simdist.yaml_text import dump

Call = Callable[..., tuple[int, str]]

SCENARIO: dict[str, Any] = {
    "steps": 4,
    "workload": {"name": "teacher", "rows": 8, "columns": 6, "matrices": 2},
    "optimizer": {"name": "sgd", "lr": 0.1},
    "mesh": {"shards": 2},
}


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    """Call the command line in this process and in an empty folder; return its exit status and stderr."""
    monkeypatch.chdir(tmp_path)

    def called(*arguments: Any) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            app([str(argument) for argument in arguments], prog_name="simdist")
        return int(ended.value.code or 0), capsys.readouterr().err

    return called


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    file = tmp_path / "scenario.yaml"
    file.write_text(dump(SCENARIO))
    return file


def expect(answer: tuple[int, str], status: int, *fragments: str) -> None:
    got, message = answer
    assert got == status, message
    assert message.startswith("Error: "), message
    assert "Traceback" not in message
    for fragment in fragments:
        assert fragment in message, message


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# -- refused: nothing has been run, nothing is left -------------------------------------------------------------------


def test_folders_of_others_are_never_touched(call: Call, scenario: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "thesis"
    theirs.mkdir()
    (theirs / "thesis.tex").write_text("precious")
    before = contents(theirs)
    for command in (["run"], ["sweep", "--over=seed=0,1"]):
        answer = call(*command, scenario, "--quiet", "--out", theirs)
        expect(answer, 2, "--out: got", "thesis", "not a folder that simdist made", "choose another --out")
        answer = call(*command, scenario, "--quiet", "--out", theirs / "thesis.tex")
        expect(answer, 2, "--out: got", "thesis.tex", "is a file")
        answer = call(*command, scenario, "--quiet", "--out", theirs / "thesis.tex" / "run")
        expect(answer, 2, "--out: got", "cannot be used")
    assert contents(theirs) == before


def test_runs_are_never_overwritten(call: Call, scenario: Path, tmp_path: Path) -> None:
    assert call("run", scenario, "--quiet", "--out", tmp_path / "run") == (0, "")
    before = contents(tmp_path / "run")
    expect(call("run", scenario, "--quiet", "--out", tmp_path / "run"), 2, "already holds a run", "new folder")
    assert contents(tmp_path / "run") == before
    # without --out the next free number is taken
    for _ in range(3):
        assert call("run", scenario, "--quiet") == (0, "")
    assert sorted(folder.name for folder in (tmp_path / "runs").iterdir()) == ["run", "run-2", "run-3"]


def test_a_ray_that_does_not_answer(call: Call, scenario: Path) -> None:
    with socket.socket() as busy:  # bound but not listening: connections are refused
        busy.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{busy.getsockname()[1]}"
        began = time.monotonic()
        answer = call("run", scenario, "--engine=ray", f"--ray-address={address}", "--quiet")
        assert time.monotonic() - began < 20
    expect(answer, 2, f"--ray-address: got '{address}', where nothing answers", "ray start --head")


def test_a_scenario_file_that_raises(call: Call, tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text("from pathlib import Path\n\n\ndef scenario():\n    return Path('/no/such/file').read_text()\n")
    expect(call("run", file), 2, f"{file}, line 5: got FileNotFoundError", "/no/such/file", "expected")
    assert not (tmp_path / "runs").exists()


def test_cuda_where_there_is_none(call: Call, scenario: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    expect(call("run", scenario, "--set=engine.device=cuda"), 2, "engine.device: got 'cuda'", "expected 'cpu'")
    assert not (tmp_path / "runs").exists()


def test_a_network_that_is_in_pieces(call: Call, scenario: Path, tmp_path: Path) -> None:
    link = {"bandwidth": "1Gbit/s", "latency": "1ms"}
    graph: dict[str, Any] = {
        "nodes": [{"id": name} for name in ("worker0", "worker1", "a", "b")],
        "edges": [{"source": "worker0", "target": "a", **link}, {"source": "worker1", "target": "b", **link}],
    }
    file = tmp_path / "apart.json"
    file.write_text(json.dumps(graph))
    on_file = ["--set=network.topology=file", f"--set=network.path={file}"]
    expect(call("run", scenario, *on_file), 2, "worker0", "worker1")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        (["compute.speeds.9=0.5"], "compute.speeds: got worker 9"),
        (["optimizer.name=orth_dion", "optimizer.lr=0.1", "optimizer.rank=7"], "rank"),
        (["wire.grads=int3"], "wire.grads: got unknown codec 'int3'"),
    ],
)
def test_what_does_not_fit_leaves_no_folder(
    call: Call, scenario: Path, tmp_path: Path, changes: list[str], fragment: str
) -> None:
    expect(call("run", scenario, *[f"--set={change}" for change in changes]), 2, fragment, "expected")
    assert not (tmp_path / "runs").exists()


# -- failed: exit 3, what has been done is kept -----------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["every_step", "async_server"])
def test_a_loss_that_is_no_number_stops_the_run(call: Call, scenario: Path, tmp_path: Path, schedule: str) -> None:
    changes = ["--set=optimizer.lr=1e20", f"--set=schedule.name={schedule}"]
    mesh = ["--set=mesh.replicas=3", "--set=mesh.shards=1"] if schedule == "async_server" else []
    answer = call("run", scenario, *changes, *mesh, "--quiet", "--out", tmp_path / "run")
    steps = pq.read_table(tmp_path / "run" / "steps.parquet").to_pylist()
    last = steps[-1]["step"]
    kept = f"everything up to step {last} is in {tmp_path / 'run'}"
    expect(answer, 3, "_loss is ", f"at step {last} with optimizer 'sgd' (lr 1e+20)", kept)
    assert 1 < last <= 4
    assert [row["step"] for row in steps] == list(range(1, last + 1))
    assert steps[0]["train_loss"] is not None
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert summary["steps"] == last
    ledger = pq.read_table(tmp_path / "run" / "ledger.parquet").to_pylist()
    assert summary["sent_bytes_total"] == sum(row["sent_bytes_total"] for row in ledger) > 0
    for name in ("scenario.yaml", "environment.json", "diagnostics.parquet", "trace.json"):
        assert (tmp_path / "run" / name).is_file()


# -- interrupted: exit 130 --------------------------------------------------------------------------------------------

#: leaves a mark when step 5 has been reached, wherever the workers are
MARKING = """
from pathlib import Path
from simdist import Scenario
from simdist.optimizers import SGD
from simdist.scenario import MeshSettings
from simdist.workloads.teacher import Teacher, TeacherTask


class Marking(Teacher):
    name: str = "marking"
    mark: str

    def build(self, seed, dtype, device):
        return MarkingTask(self, seed, dtype, device)


class MarkingTask(TeacherTask):
    def batch(self, worker, step):
        if step == 5:
            Path(self.settings.mark).touch()
        return super().batch(worker, step)


def scenario():
    return Scenario(
        steps=1_000_000, workload=Marking(mark="{mark}"), optimizer=SGD(lr=1e-9), mesh=MeshSettings(replicas=4)
    )
"""


def descendants(mark: str) -> list[str]:
    """Return the commands of all processes that inherited an environment variable with this value."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            alive = (folder / "stat").read_text().rpartition(") ")[2][0] not in "ZX"
            if alive and mark.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_text().replace("\0", " ")[:80])
        except OSError:
            continue  # ended in the meantime, or another user's
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("schedule", ["every_step", "async_server"])
@pytest.mark.parametrize("engine", ["inline", pytest.param("ray", marks=pytest.mark.slow)])
def test_ctrl_c_saves_and_leaves_nobody_behind(tmp_path: Path, engine: str, schedule: str) -> None:
    reached, mark = tmp_path / "reached", uuid.uuid4().hex
    (tmp_path / "endless.py").write_text(MARKING.replace("{mark}", str(reached)))
    # a shell starts background jobs with SIGINT ignored, which children inherit: also under such a pytest it must work
    begin = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from simdist.cli import main; main()"
    )
    command = [sys.executable, "-c", begin, "run", "endless.py", "--out", "run"]
    options = [f"--engine={engine}", f"--set=schedule.name={schedule}"]
    environment = {**os.environ, "SIMDIST_TEST_MARK": mark}
    with subprocess.Popen(
        [*command, *options],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            deadline = time.monotonic() + 120
            while not reached.exists():
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.1)
            time.sleep(0.5)  # until the rows of the steps before have come back from the actors
            running = descendants(mark)
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the whole group
            _, errors = process.communicate(timeout=60)
        finally:
            if process.poll() is None:
                process.kill()
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "Interrupted; everything up to step" in errors
    assert any("raylet" in command for command in running) == (engine == "ray")

    steps = pq.read_table(tmp_path / "run" / "steps.parquet").to_pylist()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert len(steps) >= 3
    assert [row["step"] for row in steps] == list(range(1, summary["steps"] + 1))

    deadline = time.monotonic() + 15
    while descendants(mark) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert descendants(mark) == []

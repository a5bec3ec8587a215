"""Checkpoints of a run: whole or refused, and a run that goes on from one ends as if it had never stopped."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pyarrow.parquet as pq
import pytest

from simdist import lockstep_run
from simdist.cli import app
from simdist.errors import WorkersLost
from simdist.execution.engine import Engine, LocalEngine
from simdist.execution.lockstep import StepOutcome
from simdist.results import checkpoints, disk
from simdist.running import run
from simdist.yaml_text import dump
from tests.execution.test_saved import scenario

STEPS = 7
#: columns of the tables that a repetition need not have
WALL = {"wall_seconds"}

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    """Call the command line in this process and in an empty folder; return its exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def called(*arguments: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            app([str(argument) for argument in arguments], prog_name="simdist")
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return called


def settings(**changes: Any) -> dict[str, Any]:
    data = scenario(steps=STEPS, checkpoint={"every": 2, "keep": 9}, evaluation={"every": 3}, **changes).to_dict()
    return {**data, "overlap": {"policy": "fsdp"}, "optimizer": {"name": "orth_dion", "lr": 0.05, "rank": 2}}


def prepared(tmp_path: Path, **changes: Any) -> Path:
    file = tmp_path / "scenario.yaml"
    file.write_text(dump(settings(**changes)))
    return file


@pytest.fixture
def whole(call: Call, tmp_path: Path) -> Path:
    """A finished run with checkpoints after steps 2, 4 and 6."""
    assert call("run", prepared(tmp_path), "--quiet", "--out", "whole")[0] == 0
    return tmp_path / "whole"


def cut(whole: Path, name: str, after: int) -> Path:
    """Return a copy of a run as it is when the process is killed soon after a checkpoint."""
    folder = whole.with_name(name)
    shutil.copytree(whole, folder)
    for path in (folder / "checkpoints").iterdir():
        if int(path.name.rpartition("-")[2]) > after:
            shutil.rmtree(path)
    for written in ("summary.json", "steps.parquet", "ledger.parquet", "diagnostics.parquet", "program.json"):
        (folder / written).unlink()
    return folder


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    table = pq.read_table(folder / name).to_pylist()
    return [{key: value for key, value in row.items() if key not in WALL} for row in table]


def same_run(one: Path, other: Path) -> None:
    for name in ("steps.parquet", "ledger.parquet", "diagnostics.parquet"):
        assert rows(one, name) == rows(other, name), name
    assert (one / "program.json").exists() == (other / "program.json").exists()
    for name in ("trace.json", "scenario.yaml", *(["program.json"] if (one / "program.json").exists() else [])):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    measured = ("wall_seconds", "peak_rss_bytes", "recoveries", "error")
    first, second = ({k: v for k, v in summary(folder).items() if k not in measured} for folder in (one, other))
    assert first == second


# -- resume -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [0, 2, 6])
def test_a_killed_run_goes_on_to_the_same_folder(call: Call, whole: Path, after: int) -> None:
    folder = cut(whole, "cut", after)
    status, out, news = call("resume", folder, "--quiet")
    assert (status, out) == (0, f"Run folder: {folder}\n")
    assert (f"going on after step {after}" in news) == (after > 0)
    same_run(whole, folder)
    again = json.loads((folder / "environment.json").read_text())["resumed"]
    assert [set(one) for one in again] == [{"versions", "git_revision", "host", "command"}]


def test_a_finished_run_is_left_alone(call: Call, whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    assert call("resume", whole)[:2] == (0, f"Finished before, nothing to do: {whole}\n")
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


def test_checkpoints_change_nothing_and_the_oldest_go(call: Call, whole: Path, tmp_path: Path) -> None:
    status = call(
        *("run", tmp_path / "scenario.yaml", "--quiet", "--out", "few", "--set=checkpoint.every=1"),
        "--set=checkpoint.keep=3",
    )[0]
    assert status == 0
    assert sorted(path.name for path in (tmp_path / "few" / "checkpoints").iterdir()) == [
        f"step-{step:08d}" for step in (5, 6, 7)
    ]
    assert rows(whole, "ledger.parquet") == rows(tmp_path / "few", "ledger.parquet")
    assert summary(whole)["params_sha256"] == summary(tmp_path / "few")["params_sha256"]


def test_time_alone_also_saves(call: Call, tmp_path: Path) -> None:
    timed = ["--set=checkpoint.every=null", "--set=checkpoint.every_seconds=0"]
    assert call("run", prepared(tmp_path), "--quiet", "--out", "timed", *timed)[0] == 0
    # after every step but the last, which is followed by the end of the run
    assert len(list((tmp_path / "timed" / "checkpoints").iterdir())) == STEPS - 1


# -- torn, foreign, newer ---------------------------------------------------------------------------------------------


def _shorten(folder: Path) -> None:
    with (folder / "block-0.pt").open("rb+") as file:
        file.truncate(100)


def _flip(folder: Path) -> None:
    data = bytearray((folder / "program.json").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "program.json").write_bytes(data)


def _edit(folder: Path, **changes: Any) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_shorten, r"it is torn: block-0.pt has 100 bytes with another hash"),
        (_flip, r"it is torn: program.json has \d+ bytes with another hash"),
        (lambda folder: (folder / "steps.parquet").unlink(), r"it is torn: steps.parquet is missing"),
        (lambda folder: (folder / "manifest.json").unlink(), r"it is torn: manifest.json is missing"),
        (lambda folder: (folder / "manifest.json").write_text("{"), r"it is torn: manifest.json is damaged"),
        (lambda folder: _edit(folder, clock=3), r"manifest.json is damaged \(TypeError: clock is int, expected dict"),
        (lambda folder: _edit(folder, format=99), r"got format 99, expected 1: another version of simdist wrote it"),
        (lambda folder: _edit(folder, identity="else"), r"written by another scenario or with other data"),
    ],
)
def test_a_bad_checkpoint_is_refused_and_the_previous_one_used(
    call: Call, whole: Path, damage: Callable[[Path], Any], message: str
) -> None:
    import re

    folder = cut(whole, "damaged", 6)
    damage(folder / "checkpoints" / "step-00000006")
    status, _, news = call("resume", folder, "--quiet")
    assert status == 0
    assert re.search(rf"step-00000006 is refused: .*{message}", news.replace("\n", " ")), news
    assert "going on after step 4" in news
    same_run(whole, folder)


def test_what_a_killed_process_was_writing_is_no_checkpoint(call: Call, whole: Path) -> None:
    folder = cut(whole, "half", 4)
    half = folder / "checkpoints" / ".step-00000006.writing"
    shutil.copytree(folder / "checkpoints" / "step-00000004", half)
    assert "going on after step 4" in call("resume", folder, "--quiet")[2]
    same_run(whole, folder)
    assert not half.exists()


def test_another_timing_model_is_refused(call: Call, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = cut(whole, "slower", 4)
    path = folder / "checkpoints" / "step-00000004"
    clock = json.loads((path / "manifest.json").read_text())["clock"]
    _edit(path, clock={**clock, "now": clock["now"] * 1.5})
    status, _, news = call("resume", folder, "--quiet")
    assert status == 2
    assert "the 4 steps so far take other times than when it was written" in news
    assert folder.exists()


# -- bad input --------------------------------------------------------------------------------------------------------


def test_what_cannot_be_resumed_is_refused(call: Call, whole: Path, tmp_path: Path) -> None:
    def refused(*arguments: Any) -> str:
        status, _, news = call("resume", *arguments)
        assert status == 2
        assert "Traceback" not in news
        return news

    assert "is no run folder; expected one that `simdist run` wrote" in refused(tmp_path)
    folder = cut(whole, "cut", 4)
    assert "would make it another run; expected engine.KEY=VALUE" in refused(folder, "--set=seed=3")
    assert "got it with engine 'inline'; expected --engine ray" in refused(folder, "--ray-address=127.0.0.1:1")
    assert "written by unstacked workers" in refused(folder, "--engine=stacked")
    # and it still can be
    assert call("resume", folder, "--quiet")[0] == 0


def test_two_processes_never_share_a_folder(call: Call, whole: Path) -> None:
    import fcntl

    folder = cut(whole, "cut", 4)
    with (folder / "scenario.yaml").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        status, _, news = call("resume", folder, "--quiet")
    assert status == 2
    assert "in which another process is at work" in news
    assert (folder / "checkpoints").exists()


def test_irregular_runs_have_no_steps_to_save_between(call: Call, tmp_path: Path) -> None:
    file = tmp_path / "scenario.yaml"
    data = scenario(steps=4, mesh={"replicas": 3, "shards": 1}, schedule={"name": "async_server"}).to_dict()
    file.write_text(dump(data))
    status, _, news = call("run", file, "--set=checkpoint.every=2")
    assert status == 2
    assert "checkpoint.every: got 2 with schedule 'async_server'" in news
    assert call("run", file, "--quiet", "--out", "whole")[0] == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    (tmp_path / "killed" / "summary.json").unlink()
    # from step 1, to the same bits
    assert call("resume", tmp_path / "killed", "--quiet")[0] == 0
    same_run(tmp_path / "whole", tmp_path / "killed")


def test_an_irregular_run_that_loses_workers_begins_anew(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from simdist.execution.live import LiveRun

    file = tmp_path / "scenario.yaml"
    data = scenario(steps=4, mesh={"replicas": 3, "shards": 1}, schedule={"name": "async_server"}).to_dict()
    file.write_text(dump(data))
    assert call("run", file, "--quiet", "--out", "whole")[0] == 0
    carried_out, lost = LiveRun.run, [3]

    def losing(self: Any, workers: Any, tell: Any) -> None:
        def told(booked: Any, noted: Any) -> None:
            tell(booked, noted)
            if lost and any(note.row.get("step") == lost[-1] for note in noted):
                raise WorkersLost(f"worker 1 is gone in step {lost.pop()}")

        carried_out(self, workers, told)

    monkeypatch.setattr(LiveRun, "run", losing)
    status, _, news = call("run", file, "--quiet", "--out", "lost")
    assert status == 0
    assert "worker 1 is gone in step 3. Starting again from step 1 (1 of 3 times)" in news
    assert summary(tmp_path / "lost")["recoveries"][0]["after_step"] == 3
    same_run(tmp_path / "whole", tmp_path / "lost")


# -- lost workers, failures, full disks, interruptions ----------------------------------------------------------------


class Frail(LocalEngine):
    """An engine that loses its workers just before some steps, once each."""

    losses: ClassVar[set[int]] = set()

    def steps(self, first: int, last: int, may_begin: Any = lambda step: True) -> Iterator[StepOutcome]:
        for outcome in super().steps(first, last, may_begin):
            if outcome.step in Frail.losses:
                Frail.losses.remove(outcome.step)
                raise WorkersLost(f"worker 0 is gone in step {outcome.step}")
            yield outcome


@pytest.fixture
def frail(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    from simdist import assembly

    build = assembly.build_engine

    def fragile(*args: Any) -> Engine:
        engine = build(*args)
        engine.__class__ = Frail
        return engine

    monkeypatch.setattr(lockstep_run, "build_engine", fragile)
    Frail.losses = set()
    return Frail.losses


@pytest.mark.parametrize("lost", [{1}, {3}, {3, 4, 7}])
def test_lost_workers_cost_steps_but_no_bits(call: Call, whole: Path, frail: set[int], lost: set[int]) -> None:
    frail |= lost
    status, _, news = call("run", whole.with_name("scenario.yaml"), "--quiet", "--out", "lost")
    assert status == 0
    same_run(whole, whole.with_name("lost"))
    recoveries = summary(whole.with_name("lost"))["recoveries"]
    assert [one["after_step"] for one in recoveries] == [step - 1 for step in sorted(lost)]
    assert news.count("Starting again from the last checkpoint") == len(lost)


def test_there_is_an_end_to_new_starts(call: Call, whole: Path, frail: set[int]) -> None:
    frail |= {3, 4, 5, 6, 7}
    status, _, news = call("run", whole.with_name("scenario.yaml"), "--quiet", "--out", "lost")
    assert status == 3
    assert "worker 0 is gone in step 6 (after 3 new starts, the limit of engine.retries)" in news
    assert "goes on after step 4" in news
    frail.clear()
    assert call("resume", whole.with_name("lost"), "--quiet")[0] == 0
    same_run(whole, whole.with_name("lost"))


def test_a_step_that_fails_keeps_the_state_before_it(call: Call, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = lockstep_run.LockstepRecord

    def failing(self: Any, outcome: StepOutcome) -> None:
        if outcome.step == 6:
            raise MemoryError("no more")
        add(self, outcome)

    add = block.add
    with monkeypatch.context() as patch:
        # between the engine and the record: the engine is a step ahead, so nothing can be saved
        patch.setattr(block, "add", failing)
        status, _, news = call("run", whole.with_name("scenario.yaml"), "--quiet", "--out", "failed")
    assert status == 3
    assert "goes on after step 4" in news

    step = LocalEngine.steps

    def failing_steps(self: Any, first: int, last: int, may_begin: Any) -> Iterator[StepOutcome]:
        for outcome in step(self, first, last, may_begin):
            yield outcome
            if outcome.step == 5:
                raise MemoryError("no more")

    with monkeypatch.context() as patch:
        patch.setattr(LocalEngine, "steps", failing_steps)
        status, _, news = call("resume", whole.with_name("failed"), "--quiet")
    assert status == 3
    assert "goes on after step 5" in news
    assert call("resume", whole.with_name("failed"), "--quiet")[0] == 0
    same_run(whole, whole.with_name("failed"))


def test_a_full_disk_is_named_and_the_last_checkpoint_stays(
    call: Call, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = disk.write_whole

    def full(path: Path, data: bytes) -> None:
        if "00000004" in str(path.parent):
            path.write_bytes(data[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_whole", full)
        status, _, news = call("run", whole.with_name("scenario.yaml"), "--quiet", "--out", "full")
    folder = whole.with_name("full")
    assert status == 3
    assert "the disk is full" in news
    assert "the checkpoint of step 4 was not written" in news
    assert "goes on after step 2" in news
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000002"]
    assert call("resume", folder, "--quiet")[0] == 0
    same_run(whole, folder)


def test_a_disk_that_is_full_at_the_end_loses_no_checkpoint(
    call: Call, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from simdist.results.recorder import Recorder

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "write_tables", full)
        status, _, news = call("run", whole.with_name("scenario.yaml"), "--quiet", "--out", "full")
    assert status == 3
    assert "the disk is full" in news
    assert "could not be written" in news
    assert "goes on after step 6" in news
    assert "Traceback" not in news
    assert call("resume", whole.with_name("full"), "--quiet")[0] == 0
    same_run(whole, whole.with_name("full"))


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_finishes_the_step_and_saves(tmp_path: Path, name: str) -> None:
    file = tmp_path / "long.yaml"
    file.write_text(dump({**settings(), "steps": 100_000, "checkpoint": {"every_seconds": 0.5}}))
    begin = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from simdist.cli import main; main()"
    )
    command = [sys.executable, "-c", begin, "run", str(file), "--out", "stopped", "--quiet"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 100
        while not list((tmp_path / "stopped").glob("checkpoints/step-*")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.1)
        # past the checkpoint that the clock asked for
        time.sleep(0.2)
        process.send_signal(getattr(signal, name))
        _, news = process.communicate(timeout=60)
    assert process.returncode == 130, news
    stopped = summary(tmp_path / "stopped")
    assert stopped["status"] == "interrupted"
    assert f"{name}: finishing the step under way, then saving" in news
    assert f"`simdist resume stopped` goes on after step {stopped['steps']}" in news.replace("\n", " ")
    last = max((tmp_path / "stopped" / "checkpoints").iterdir())
    assert last.name == f"step-{stopped['steps']:08d}"


def test_run_without_a_checkpoint_section_of_old(tmp_path: Path) -> None:
    """Scenario files of earlier versions have none."""
    old = scenario(steps=1).to_dict()
    del old["checkpoint"]
    assert run(type(scenario()).from_dict(old), out=tmp_path / "run", progress=False).is_dir()

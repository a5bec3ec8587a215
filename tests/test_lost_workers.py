"""Runs that lose workers, fail, are interrupted, or find the disk full: what is kept, and how they go on."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from simdist import assembly, lockstep_run
from simdist.errors import WorkersLost
from simdist.execution.engine import Engine, LocalEngine
from simdist.execution.live import LiveRun
from simdist.execution.lockstep import StepOutcome
from simdist.results import checkpoints, disk
from simdist.results.recorder import Recorder
from simdist.yaml_text import dump
from tests.execution.test_saved import scenario
from tests.resumed_runs import Call, call, same_run, settings, summary, whole

__all__ = ["call", "whole"]  # fixtures


def test_an_irregular_run_that_loses_workers_begins_anew(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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

"""Checkpoints of a run: whole or refused, and a run that goes on from one ends as if it had never stopped."""

from __future__ import annotations

import fcntl
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simdist.running import run
from simdist.yaml_text import dump
from tests.execution.test_saved import scenario
from tests.resumed_runs import STEPS, Call, call, cut, prepared, rows, same_run, summary, whole

__all__ = ["call", "whole"]  # fixtures


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


def test_run_without_a_checkpoint_section_of_old(tmp_path: Path) -> None:
    """Scenario files of earlier versions have none."""
    old = scenario(steps=1).to_dict()
    del old["checkpoint"]
    assert run(type(scenario()).from_dict(old), out=tmp_path / "run", progress=False).is_dir()

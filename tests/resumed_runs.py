"""A small run with checkpoints, cut short or finished, and when two runs are the same: for the tests of going on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from simdist.cli import app
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

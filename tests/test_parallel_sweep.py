"""A sweep whose points run side by side ends up as one whose points run one after the other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from simdist.cli import app
from simdist.results.remote import local_files
from simdist.yaml_text import dump

Call = Callable[..., tuple[int, str, str]]

#: what may differ between two runs of a scenario
OWN = ("wall_seconds", "peak_rss_bytes")
SCENARIO: dict[str, Any] = {
    "name": "mine",
    "steps": 3,
    "workload": {"name": "teacher", "rows": 6, "columns": 5},
    "mesh": {"shards": 2},
    "optimizer": {"name": "orth_dion", "lr": 0.02, "rank": 2},
    "diagnostics": {"every": 1},
}


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Call]:
    """Call the command line in this process; return its exit status, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "scenario.yaml").write_text(dump(SCENARIO))

    def called(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            app(["sweep", str(tmp_path / "scenario.yaml"), "--quiet", *arguments], prog_name="simdist")
        written = capsys.readouterr()
        return int(ended.value.code or 0), written.out, written.err

    yield called
    import ray

    assert not ray.is_initialized(), "a Ray that a sweep has started ends with it"


def summary(run: Path) -> dict[str, Any]:
    found = json.loads((run / "summary.json").read_text())
    return {key: value for key, value in found.items() if key not in OWN}


def test_a_sweep_side_by_side_ends_up_as_one_after_the_other(call: Call, tmp_path: Path) -> None:
    """Here the results land at a URL, too; one point fails, one that cannot even begin leaves nothing."""
    over = ["--over", "optimizer.lr=0.02,1e30", "--over", "workload.columns=5,1"]
    serial, there, again = tmp_path / "serial", tmp_path / "there", tmp_path / "again"
    status, _, before = call(*over, "--out", str(serial))
    assert (status, before.count("\n")) == (3, 6), before
    status, printed, errors = call(*over, "--out", f"file://{there}", "--parallel", "2")
    assert status == 3
    assert errors.replace(f"file://{there}", str(serial)) == before
    assert f"Sweep folder: file://{there}" in printed
    assert "/4] lr=0.02,columns=5: done, val loss " in printed
    assert sorted(local_files(there)) == sorted(local_files(serial))
    finished = there / "lr=0.02,columns=5"
    for run in sorted(path.parent for path in there.glob("*/summary.json")):
        twin = serial / run.name
        assert summary(run) == summary(twin)
        assert (run / "ledger.parquet").read_bytes() == (twin / "ledger.parquet").read_bytes()
        assert (run / "scenario.yaml").read_text() == (twin / "scenario.yaml").read_text()
        command = json.loads((run / "environment.json").read_text())["command"]
        assert command == json.loads((twin / "environment.json").read_text())["command"], "what the user called"
    changed = finished.stat().st_mtime_ns
    status, printed, _ = call("--over", "optimizer.lr=0.02", "--over", "workload.columns=5", "--out", f"file://{there}")
    assert status == 0
    assert "[1/1] lr=0.02,columns=5: finished before, skipped" in printed
    assert finished.stat().st_mtime_ns == changed
    assert not again.exists()


@pytest.mark.slow
def test_points_that_bring_actors_of_their_own_run_side_by_side(call: Call, tmp_path: Path) -> None:
    over = ["--over", "engine.name=inline,ray", "--over", "seed=0,1", "--set", "checkpoint.every=2"]
    status, printed, errors = call(*over, "--out", str(tmp_path / "out"), "--parallel", "2")
    assert status == 0, errors
    assert printed.count(": done") == 4
    for seed in (0, 1):
        inline, ray = (summary(tmp_path / "out" / f"engine={name},seed={seed}") for name in ("inline", "ray"))
        assert inline.pop("engine") == "inline"
        assert ray.pop("engine") == "ray"
        assert inline == ray
        names = [set(local_files(tmp_path / "out" / f"engine={name},seed={seed}")) for name in ("inline", "ray")]
        assert {name for name in names[0] ^ names[1] if not name.endswith(".pt")} == set()


@pytest.mark.parametrize("value", ["0", "-1", "many"])
def test_a_number_of_points_below_one_is_refused(call: Call, value: str) -> None:
    status, _, message = call("--over=seed=0", f"--parallel={value}")
    assert status == 2
    assert "--parallel" in message


def test_a_cluster_that_does_not_answer_is_refused_before_anything_is_written(call: Call, tmp_path: Path) -> None:
    out = tmp_path / "out"
    status, _, message = call("--over=seed=0", "--out", str(out), "--ray-address", "127.0.0.1:1")
    assert status == 2
    assert "--ray-address: got '127.0.0.1:1', where nothing answers" in message
    assert not out.exists()


def test_stacked_points_that_would_fight_over_cores_are_told(call: Call, tmp_path: Path) -> None:
    from simdist.scenario import Scenario
    from simdist.side_by_side import advice

    stacked, threaded = ({**SCENARIO, "engine": {"name": "stacked", **more}} for more in ({}, {"threads": 1}))
    assert advice([Scenario.from_dict(threaded), Scenario.from_dict(SCENARIO)]) == []
    (text,) = advice([Scenario.from_dict(stacked), Scenario.from_dict(threaded)])
    assert text.startswith("engine.threads: 1 points of engine 'stacked' each use all cores")
    assert "--set engine.threads=1" in text

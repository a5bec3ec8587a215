"""``--out URL``, and commands on runs that lie at one: the same files as in a folder; messages name the URL."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simdist.cli import app
from simdist.results.remote import local_files
from simdist.yaml_text import dump

Call = Callable[..., tuple[int, str, str]]
SCENARIO: dict[str, Any] = {
    "name": "mine",
    "steps": 4,
    "workload": {"name": "teacher", "rows": 6, "columns": 5},
    "mesh": {"shards": 2},
    "optimizer": {"name": "orth_dion", "lr": 0.02, "rank": 2},
    "checkpoint": {"every": 2},
}


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    """Call the command line in this process; return its exit status, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scenario.yaml").write_text(dump(SCENARIO))

    def called(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            app(list(arguments), prog_name="simdist")
        written = capsys.readouterr()
        final = written.out + written.err.rpartition("Error:")[2].partition("simdist: ")[0]
        assert "/simdist-" not in final, "the local folder in front of a URL is nobody's business"
        return int(ended.value.code or 0), written.out, written.err

    return called


def hashes(run: Path) -> tuple[str, str, str]:
    found = json.loads((run / "summary.json").read_text())
    return found["status"], found["params_sha256"], found["ledger_sha256"]


def test_a_run_at_a_url_is_resumed_retimed_and_reported(call: Call, tmp_path: Path) -> None:
    there = tmp_path / "bucket" / "mine"
    url = f"file://{there}"
    assert call("run", "scenario.yaml", "--quiet", "--out", str(tmp_path / "local"))[0] == 0
    status, printed, errors = call("run", "scenario.yaml", "--out", url)
    assert status == 0, errors
    assert f"Run folder: {url}" in printed
    assert set(local_files(there)) == set(local_files(tmp_path / "local"))
    assert hashes(there) == hashes(tmp_path / "local")

    # as if the run had been killed after its first checkpoint
    (there / "summary.json").unlink()
    for step in (there / "checkpoints").iterdir():
        if not step.name.endswith("2"):
            shutil.rmtree(step)
    status, printed, errors = call("resume", url, "--quiet")
    assert (status, printed) == (0, f"Run folder: {url}\n")
    assert "going on after step 2" in errors
    assert hashes(there) == hashes(tmp_path / "local")
    assert call("resume", url, "--quiet") == (0, f"Finished before, nothing to do: {url}\n", "")

    before = set(local_files(there))
    status, printed, _ = call("retime", url, "--over", "network.bandwidth=10Mbit/s")
    assert status == 0
    assert f"Re-timings: {url}/retimed" in printed
    status, printed, errors = call("report", url)
    assert status == 0, errors
    assert f"Report: {url}/report.html" in printed
    added = set(local_files(there)) - before
    assert {"report.html", "retimed/bandwidth=10Mbit-s/summary.json"} <= added
    assert before <= set(local_files(there)), "checkpoints were not fetched, and stay"
    status, _, message = call("run", "scenario.yaml", "--out", url)
    assert status == 2
    assert f"--out: got '{url}', which already holds a run" in message


def test_a_run_that_fails_lands_with_its_checkpoints(call: Call, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/bucket"
    changes = ["--set", "optimizer.lr=1e30", "--set", "checkpoint.every=1", "--out", url]
    status, _, message = call("run", "scenario.yaml", "--quiet", *changes)
    assert status == 3
    assert f"everything up to step 2 is in {url}" in message
    assert f"`simdist resume {url}` goes on after step 1" in message
    assert hashes(tmp_path / "bucket")[0] == "failed"
    assert (tmp_path / "bucket" / "checkpoints" / "step-00000001" / "manifest.json").is_file()


def test_urls_where_they_make_no_sense_are_refused(call: Call, tmp_path: Path) -> None:
    status, _, message = call("report", "s3://bucket/run", "runs/mine")
    assert status == 2
    assert "without --out; expected --out DIR" in message
    for command in (["report", "x", "--out"], ["retime", "x", "--out"]):
        status, _, message = call(*command, "s3://bucket/x")
        assert status == 2
        assert "a URL; expected a folder of this machine" in message
    status, _, message = call("run", "scenario.yaml", "--out", "s3://bucket/x")
    assert status == 2
    assert "pip install s3fs" in message
    assert {path.name for path in tmp_path.iterdir()} == {"scenario.yaml"}

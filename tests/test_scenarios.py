"""Every file in ``scenarios/`` checks, runs at a small size on the engines it can have, and repeats itself.

A new file joins by itself; one that is slow at two steps gets an entry in :data:`SMALLER`.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from simdist.cli import app
from simdist.loading import load, load_scenario
from simdist.scenario import Scenario, Sweep
from simdist.sweeping import points
from simdist.yaml_text import parse

HERE = Path(__file__).resolve().parent.parent / "scenarios"
FILES = sorted(HERE.glob("*.py"))
CUSTOM = [file for file in FILES if file.stem.startswith("custom_")]

SMALL_GPT = ["workload.width=16", "workload.depth=1", "workload.heads=2", "workload.context=16", "workload.batch=1"]
#: ``--set`` texts that make a scenario small, besides two steps
SMALLER: dict[str, list[str]] = {
    "bandwidth_vs_convergence": SMALL_GPT,
    "compression_at_scale": [
        *("workload.width=16", "workload.depth=1", "workload.heads=2", "workload.kv_heads=1", "workload.hidden=16"),
        *("workload.vocabulary=256", "workload.context=16", "mesh.replicas=2", "mesh.shards=2"),
    ],
    "custom_model": ["workload.batch=4"],
    "custom_optimizer": SMALL_GPT,
    # one worker alone would send nothing
    "orth_dion_verdict": [*SMALL_GPT, "mesh.shards=2"],
    "quickstart": [*SMALL_GPT, "optimizer.rank=4"],
    "slow_worker": SMALL_GPT,
}

each = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
each_custom = pytest.mark.parametrize("file", CUSTOM, ids=lambda file: file.stem)


def small(file: Path, engine: str = "inline") -> list[str]:
    return ["steps=2", f"engine.name={engine}", "engine.threads=1", *SMALLER.get(file.stem, [])]


def simdist(*arguments: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        app([str(argument) for argument in arguments], prog_name="simdist")
    assert ended.value.code == 0


def run(path: Path, out: Path, changes: list[str]) -> dict[str, Any]:
    simdist("run", path, "--quiet", "--out", out, *[f"--set={change}" for change in changes])
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    assert summary["status"] == "done"
    return summary


def test_the_scenarios_of_the_readme_are_there() -> None:
    names = {"quickstart", "bandwidth_vs_convergence", "custom_optimizer", "custom_model", "slow_worker"}
    assert names <= {file.stem for file in FILES}
    assert SMALLER.keys() <= {file.stem for file in FILES}


@each
def test_it_says_how_to_run_it_and_is_short(file: Path) -> None:
    text = file.read_text()
    head = ast.get_docstring(ast.parse(text))
    assert head is not None
    assert f" scenarios/{file.name}" in head
    assert len(text.splitlines()) <= 100


@each
def test_it_checks_and_its_yaml_reads_back(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = load_scenario(str(file))
    assert Scenario.from_dict(parse(found.to_yaml(), "a test")) == found
    simdist("check", file, *[f"--set={change}" for change in small(file)])
    assert Scenario.from_dict(parse(capsys.readouterr().out, "a test")) == load_scenario(str(file), small(file))
    both = load(str(file), prefer="sweep")
    if isinstance(both, Sweep):
        again = Sweep.model_validate(parse(both.to_yaml(), "a test"))
        assert [point.scenario for point in points(again)] == [point.scenario for point in points(both)]


@each
def test_it_runs(file: Path, tmp_path: Path) -> None:
    inline = run(file, tmp_path / "inline", small(file))
    assert inline["steps"] == 2
    assert inline["final_val_loss"] is not None
    assert inline["sent_bytes_total"] > 0
    assert inline["simulated_seconds"] > 0
    if load_scenario(str(file)).schedule.lockstep:
        stacked = run(file, tmp_path / "stacked", small(file, "stacked"))
        assert stacked["ledger_sha256"] == inline["ledger_sha256"]
        assert stacked["simulated_seconds"] == inline["simulated_seconds"]
        assert stacked["final_val_loss"] == pytest.approx(inline["final_val_loss"], rel=1e-4)


def test_the_main_job_sweeps_over_its_optimizers(tmp_path: Path) -> None:
    file = HERE / "bandwidth_vs_convergence.py"
    # its matrices keep their width, which the optimizers' ranks belong to
    changes = [*small(file), "workload.width=96", "workload.heads=4"]
    simdist("sweep", file, "--quiet", "--out", tmp_path / "sweep", *[f"--set={change}" for change in changes])
    folders = [folder for folder in (tmp_path / "sweep").iterdir() if folder.is_dir()]
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    assert len({summary["ledger_sha256"] for summary in summaries}) == len(folders) == 4
    assert {summary["status"] for summary in summaries} == {"done"}
    names = {load_scenario(str(folder)).optimizer.name for folder in folders}
    assert names == {"adamw", "muon", "dion", "orth_dion"}


@each_custom
def test_what_is_saved_repeats_the_run_elsewhere(file: Path, tmp_path: Path) -> None:
    """In another process and another folder: the file is found by the path that was saved."""
    first = run(file, tmp_path / "first", small(file))
    again = [sys.executable, "-W", "error", "-m", "simdist.cli", "run", str(tmp_path / "first"), "--quiet"]
    subprocess.run([*again, "--out", "again"], cwd=tmp_path, check=True, capture_output=True)
    second = json.loads((tmp_path / "again" / "summary.json").read_text())
    for key in ("params_sha256", "ledger_sha256", "simulated_seconds", "final_val_loss"):
        assert first[key] == second[key], key
    saved = [(tmp_path / name / "scenario.yaml").read_text() for name in ("first", "again")]
    assert saved[0] == saved[1]
    assert str(file) in saved[0]


@pytest.mark.usefixtures("cluster")
@each_custom
def test_actors_change_nothing(file: Path, tmp_path: Path) -> None:
    inline = run(file, tmp_path / "inline", small(file))
    there = run(file, tmp_path / "ray", [*small(file, "ray"), "engine.actors=2"])
    for key in ("params_sha256", "ledger_sha256", "simulated_seconds", "final_val_loss"):
        assert inline[key] == there[key], key


def test_the_custom_optimizer_s_norm_stands_in_the_ledger(tmp_path: Path) -> None:
    """Four bytes per matrix, as the file says."""
    import pyarrow.parquet as pq

    file = HERE / "custom_optimizer.py"
    run(file, tmp_path / "run", small(file))
    rows = pq.read_table(tmp_path / "run" / "ledger.parquet").to_pylist()
    norms = [row for row in rows if row["purpose"] == "optimizer"]
    assert norms
    for row in norms:
        assert (row["op"], row["axis"], row["codec"]) == ("all_reduce", "shards", "fp32")
        names, _, part = row["tensor"].partition(":")
        assert part == "norm"
        assert row["payload_bytes"] == 4 * len(names.split("+"))

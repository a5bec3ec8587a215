"""Run folders are found, read, named, and refused with a reason when they are not run folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from simdist.errors import InputError
from simdist.results.report import report
from simdist.results.tables import find_runs, unfinished


def test_a_run_reads_back_with_nan_where_validation_was_not_measured(write_run) -> None:
    run = find_runs([write_run(steps=20, val_every=10, retimed=(1e9, 1e7))])[0]
    assert np.flatnonzero(np.isfinite(run.steps["val_loss"])).tolist() == [9, 19]
    assert [one.bandwidth for one in run.retimed] == [1e7, 1e9]
    assert run.retimed[0].steps["simulated_seconds"][-1] == pytest.approx(20 * (0.01 + 8e6 / 1e7))


def test_a_run_of_an_earlier_version_has_no_hidden_seconds(write_run) -> None:
    folder = write_run()
    file = folder / "steps.parquet"
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(file).drop_columns(["hidden_comm_seconds"]), file)
    [run] = find_runs([folder])
    assert np.isnan(run.steps["hidden_comm_seconds"]).all()
    assert run.mean_seconds("compute_seconds") == pytest.approx(0.01)
    assert run.conditions["overlap"] == {"policy": "none"}
    text = report([folder]).read_text()
    assert "What is hidden was not measured for AdamW" in text


def test_sweep_folder_is_searched_at_any_depth_and_each_run_counts_once(write_run, tmp_path: Path) -> None:
    write_run("sweep/b/deep", optimizer="muon", retimed=(1e7,))
    first = write_run("sweep/a", optimizer="adamw")
    assert [run.label for run in find_runs([tmp_path / "sweep", first])] == ["AdamW", "Muon"]


def test_labels_name_the_optimizer_then_the_fewest_telling_settings(write_run, tmp_path: Path) -> None:
    write_run("a", settings={"optimizer.lr": 0.01, "seed": 1})
    write_run("b", settings={"optimizer.lr": 0.03, "seed": 2})
    write_run("c", optimizer="orth_dion", settings={"seed": 3})
    assert [run.label for run in find_runs([tmp_path])] == ["AdamW lr=0.01", "AdamW lr=0.03", "Orth-Dion"]


def test_labels_take_a_second_setting_only_where_one_is_not_enough(write_run, tmp_path: Path) -> None:
    for rate in (0.01, 0.03):
        for seed in (1, 2):
            write_run(f"{rate}-{seed}", settings={"optimizer.lr": rate, "seed": seed})
    found = [run.label for run in find_runs([tmp_path])]
    assert found[0] == "AdamW lr=0.01 seed=1"
    assert len(set(found)) == 4


def test_equal_settings_are_told_apart_by_folder(write_run, tmp_path: Path) -> None:
    write_run("a")
    write_run("b")
    assert [run.label for run in find_runs([tmp_path])] == ["AdamW (a)", "AdamW (b)"]


def test_bytes_by_purpose_add_up_to_the_summary(write_run) -> None:
    run = find_runs([write_run(sent=1e6)])[0]
    assert run.bytes_by_purpose == {
        ("param_gather", "shards"): 450_000.0,
        ("grad_reduce", "shards"): 250_000.0,
        ("grad_reduce", "replicas"): 200_000.0,
        ("optimizer", "shards"): 100_000.0,
    }
    assert sum(run.bytes_by_purpose.values()) == run.summary["sent_bytes_per_worker_per_step"]


def test_paths_without_runs_are_refused_with_what_was_expected(write_run, tmp_path: Path) -> None:
    run = write_run(retimed=(1e7,))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="does not exist; expected a run folder"):
        find_runs([tmp_path / "nowhere"])
    with pytest.raises(InputError, match="holds no run; expected"):
        find_runs([tmp_path / "empty"])
    with pytest.raises(InputError, match=r"is a file.*write '.*run'"):
        find_runs([run / "summary.json"])
    with pytest.raises(InputError, match=r"is a re-timing of a run.*write '.*run'"):
        find_runs([run / "retimed" / "bandwidth=1e+07"])


def test_unfinished_runs_are_listed_and_alone_refused(write_run, tmp_path: Path) -> None:
    write_run("done")
    stopped = write_run("stopped")
    (stopped / "summary.json").unlink()
    assert [run.path.name for run in find_runs([tmp_path])] == ["done"]
    assert unfinished([tmp_path]) == [stopped]
    with pytest.raises(InputError, match="no finished run"):
        find_runs([stopped])


@pytest.mark.parametrize("name", ["scenario.yaml", "summary.json", "steps.parquet"])
def test_damaged_files_are_named(write_run, name: str) -> None:
    run = write_run()
    (run / name).write_text("[not what it should be")
    with pytest.raises(InputError, match=f"cannot read .*{name}"):
        find_runs([run])

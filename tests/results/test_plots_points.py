"""Times to a loss, targets and cross-overs against closed forms."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from simdist.results.plots_points import (
    Region,
    bytes_to_loss,
    choose_target,
    computing_share,
    crossovers,
    fastest,
    loss_kind,
    representatives,
    smooth,
    time_to_loss,
    timings,
)
from simdist.results.tables import find_runs


def test_time_and_bytes_to_a_loss_follow_the_closed_form(write_run) -> None:
    # Loss 1 + 4 exp(-0.02 s) = 2 at step s = 50 ln 4; measured at each step; 0.09 s and 1 MB a step.
    run = find_runs([write_run(rate=0.02, floor=1.0, sent=1e6, bandwidth=1e8, val_every=1)])[0]
    step = 50 * math.log(4)
    assert time_to_loss(run.steps, 2.0) == pytest.approx(step * 0.09, rel=1e-3)
    assert bytes_to_loss(run.steps, 2.0) == pytest.approx(step * 1e6, rel=1e-3)
    assert time_to_loss(run.steps, 0.5) is None


def test_time_to_loss_interpolates_between_sparse_measurements() -> None:
    steps = {"val_loss": np.array([np.nan, 3.0, np.nan, 1.0]), "simulated_seconds": np.array([1.0, 2.0, 3.0, 4.0])}
    assert time_to_loss(steps, 2.5) == 2.5
    assert time_to_loss(steps, 3.5) == 2.0


def test_smoothing_never_looks_ahead() -> None:
    noisy = np.zeros(20)
    noisy[10] = 5.0
    assert np.flatnonzero(smooth(noisy, 5)).tolist() == [10, 11, 12, 13, 14]


def test_target_is_the_worst_final_loss_of_runs_that_learned(write_run, tmp_path: Path) -> None:
    write_run("good", optimizer="muon", rate=0.03)
    write_run("worse", optimizer="adamw", rate=0.02)
    write_run("diverged", optimizer="sgd", rate=-0.01)
    runs = find_runs([tmp_path])
    target = choose_target(runs)
    assert target.loss == pytest.approx(1 + 4 * math.exp(-0.02 * 200))
    assert "AdamW" in target.rule
    assert choose_target(runs, 3.0).loss == 3.0


def test_training_loss_decides_where_some_run_has_no_validation_curve(write_run, tmp_path: Path) -> None:
    write_run("a")
    assert loss_kind(find_runs([tmp_path])) == "validation"
    write_run("b", val_every=200)
    assert loss_kind(find_runs([tmp_path])) == "training"


def test_crossover_of_two_runs_is_where_their_step_times_balance(write_run, tmp_path: Path) -> None:
    # Same curve: a: 0.01 + 8e6/B a step, b: 0.02 + 8e5/B; equal at B = 7.2e6 / 0.01 = 720 Mbit/s.
    rates = [10 ** (7 + 3 * at / 60) for at in range(61)]
    write_run("a", optimizer="adamw", sent=1e6, flop_seconds=0.01, bandwidth=1e8, retimed=rates)
    write_run("b", optimizer="dion", sent=1e5, flop_seconds=0.02, bandwidth=1e8, retimed=rates)
    runs = find_runs([tmp_path])
    [(rate, below, above)] = crossovers(timings(runs).seconds_to(choose_target(runs)))
    assert (below, above) == ("Dion", "AdamW")
    assert rate == pytest.approx(720e6, rel=0.003)


def test_a_third_run_can_win_between_two_bandwidths() -> None:
    lines = {"a": {1e6: 1.0, 1e8: 100.0}, "b": {1e6: 100.0, 1e8: 1.0}, "c": {1e6: 4.0, 1e8: 4.0}}
    assert [region.label for region in fastest(lines)] == ["a", "c", "b"]
    assert crossovers(lines)[0][0] == pytest.approx(4e6)


def test_equal_runs_do_not_cross() -> None:
    assert fastest({"a": {1e6: 2.0, 1e7: 1.0}, "b": {1e6: 2.0, 1e7: 1.0}}) == [Region(1e6, 1e7, "a")]


def test_only_retimings_that_differ_in_bandwidth_alone_are_compared(write_run, tmp_path: Path) -> None:
    for name, optimizer in (("a", "adamw"), ("b", "muon")):
        run = write_run(name, optimizer=optimizer, bandwidth=1e8, retimed=(1e7, 1e9))
        saved = (run / "retimed" / "bandwidth=1e+09" / "network.yaml").read_text().replace("0.001", "0.5")
        (run / "retimed" / "bandwidth=1e+09" / "network.yaml").write_text(saved)
    timed = timings(find_runs([tmp_path]))
    assert timed.common == (1e7, 1e8)
    assert timed.conditions is not None
    assert timed.conditions["network"]["latency"] == 0.001


def test_retimings_under_another_overlap_are_not_mixed_in(write_run) -> None:
    run = write_run(bandwidth=1e8, retimed=(1e7, 1e9))
    with (run / "retimed" / "bandwidth=1e+09" / "network.yaml").open("a") as file:
        file.write("overlap: {policy: fsdp}\n")
    assert timings(find_runs([run])).common == (1e7, 1e8)


def test_panels_are_the_lowest_middle_and_highest_common_bandwidths(write_run) -> None:
    rates = (1e7, 3e7, 1e8, 3e8, 1e9)
    assert timings(find_runs([write_run(bandwidth=1e8, retimed=rates)])).panels() == (1e7, 1e8, 1e9)


def test_share_of_computing_is_computing_over_all(write_run) -> None:
    run = find_runs([write_run(sent=1e6, flop_seconds=0.02, bandwidth=1e8)])[0]
    assert computing_share(run.steps) == pytest.approx(0.02 / 0.10)


def test_many_runs_are_represented_by_the_best_of_each_optimizer(write_run, tmp_path: Path) -> None:
    for index in range(5):
        write_run(f"a{index}", optimizer="adamw", rate=0.01 + 0.002 * index, settings={"optimizer.lr": 0.1 * index})
        write_run(f"m{index}", optimizer="muon", rate=0.03 - 0.002 * index, settings={"optimizer.lr": 0.1 * index})
    kept = representatives(find_runs([tmp_path]))
    assert [run.path.name for run in kept] == ["a4", "m0"]

"""The benchmark measures what it says: sides in turns, equal work, honest ratios, nothing left behind."""

from __future__ import annotations

import ast
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from analysis.benchmarks import measuring
from analysis.benchmarks.__main__ import main
from analysis.benchmarks.case import (
    FULL,
    HERE,
    QUICK,
    Case,
    Question,
    Side,
    all_cases,
    one_time_seconds,
    step_ratio,
    step_seconds,
)
from analysis.benchmarks.cases import error_feedback, gpu
from analysis.benchmarks.report import missed
from analysis.benchmarks.sides import federated_data
from analysis.benchmarks.sides.dense_orth_dion import DenseOrthDion
from analysis.benchmarks.sides.plain_loop import backward, leaves_of
from simdist.assembly import build_engine, build_job, build_task
from simdist.execution.engine import LocalEngine
from simdist.loading import load_scenario
from simdist.program.state import tensors_of

SILENT = measuring.Sampler(1, lambda text: None)
TINY = ("workload.width=16", "workload.depth=1", "workload.heads=2", "workload.context=8", "workload.batch=1")


def said(**values: Any) -> str:
    return f"print({json.dumps(json.dumps(values))})"


def script(name: str, code: str, **more: Any) -> Side:
    return Side(name, ("-c", code), "a test's", **more)


def a_case(*sides: Side, **more: Any) -> Case:
    return Case("some", "a test's", sides, more.pop("questions", ()), more.pop("rounds", 2), **more)


def test_steady_steps_leave_the_warm_up_out_and_one_time_costs_hold_it() -> None:
    sample = {"start_seconds": 10.0, "step_seconds": [5.0, 2.0, 1.0, 9.0, 1.0]}
    assert step_seconds(sample) == 1.0
    assert one_time_seconds(sample) == 10.0 + 4.0 + 1.0


def test_sides_are_measured_in_turns_in_fresh_processes(tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = "import os; open({!r}, 'a').write('{} ' + str(os.getpid()) + '\\n'); " + said(step_seconds=[1.0])
    sides = [script(name, code.replace("{}", name).replace("{!r}", repr(str(log)))) for name in "ab"]
    found = SILENT.measure(a_case(*sides, rounds=3))
    order = [line.split() for line in log.read_text().splitlines()]
    assert [name for name, _ in order] == list("ababab")
    assert len({process for _, process in order}) == 6
    assert [sorted(round_) for round_ in found["rounds"]] == [["a", "b"]] * 3


def test_ratios_are_of_samples_of_the_same_round() -> None:
    """A moment that slows both sides down leaves the ratio alone."""
    slow = {"step_seconds": [0, 0, 8.0]}, {"step_seconds": [0, 0, 4.0]}
    fast = {"step_seconds": [0, 0, 2.0]}, {"step_seconds": [0, 0, 1.0]}
    question = Question("?", step_ratio("a", "b"), "x", 1.5)
    rounds = [dict(zip("ab", pair, strict=True)) for pair in (slow, fast, fast)]
    finding = measuring.answered(question, rounds)
    assert finding["values"] == [2.0, 2.0, 2.0]
    assert finding["met"] is False
    assert measuring.answered(Question("?", step_ratio("b", "a"), "x", 0.5), rounds)["met"] is True


def test_different_work_is_no_comparison() -> None:
    sides = [script(name, said(losses=[5.0, loss])) for name, loss in (("a", 4.0), ("b", 4.001), ("c", 4.1))]
    SILENT.measure(a_case(*sides, agree=(("a", "b"),)))
    with pytest.raises(measuring.SideFailed, match="'a' and 'c' differ by"):
        SILENT.measure(a_case(*sides, agree=(("a", "b", "c"),)))


def test_a_loss_that_is_no_number_agrees_with_nothing() -> None:
    sides = [script(name, said(losses=[float("nan")])) for name in "ab"]
    with pytest.raises(measuring.SideFailed, match="same work"):
        SILENT.measure(a_case(*sides, agree=(("a", "b"),)))


@pytest.mark.parametrize(("code", "says"), [("raise SystemExit('broken')", "broken"), ("print('no')", "no JSON")])
def test_a_side_that_fails_is_a_finding_with_its_words(code: str, says: str) -> None:
    with pytest.raises(measuring.SideFailed, match=says):
        SILENT.measure(a_case(script("a", code)))


def test_a_side_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    note = tmp_path / "child"
    code = (
        "import subprocess, sys, time; sleep = [sys.executable, '-c', 'import time; time.sleep(300)']; "
        "child = subprocess.Popen(sleep); "
        f"open({str(note)!r}, 'w').write(str(child.pid)); time.sleep(300)"
    )
    with pytest.raises(measuring.SideFailed, match="not done within"):
        measuring.run([sys.executable, "-c", code], 1, 4.0, reports=True)
    child = int(note.read_text())
    deadline = time.monotonic() + 10
    while _alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(child)


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_tuned_side_gets_what_its_choice_prints_and_asks_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    choice = ("-c", f"open({str(log)!r}, 'a').write('x'); " + said(arguments=["7"]))
    sides = [script(name, "import sys, json; print(json.dumps({'got': sys.argv[1]}))", tuned=choice) for name in "ab"]
    found = SILENT.measure(a_case(*sides))
    assert [sample["got"] for round_ in found["rounds"] for sample in round_.values()] == ["7"] * 4
    assert log.read_text() == "x"


def test_every_case_of_the_issue_is_there_and_says_what_its_sides_do() -> None:
    targets = {q.what: q.limit for case in all_cases(FULL).values() for q in case.questions if q.limit is not None}
    limits = sorted(targets.values())
    assert limits == sorted([1.15, 1.35, 1.3, 1.5, 2.0, 1.5e9, 1.5e9, 1.5e9, 0.05, 0.05, 2.0, 1.0, 1.0, 1.25]), targets
    for size in (FULL, QUICK):
        for case in all_cases(size).values():
            names = [side.name for side in case.sides]
            assert len(names) == len(set(names))
            assert all(side.says for side in case.sides)
            assert {name for group in case.agree for name in group} <= set(names)


def test_a_case_that_cannot_be_measured_here_says_why() -> None:
    if not torch.cuda.is_available():
        assert "needs a GPU" in str(all_cases(FULL)["gpu"].missing)
    assert "--make-flower" in str(all_cases(QUICK)["federated"].missing) or FULL.flower_python.exists()


def test_flower_plays_the_same_game() -> None:
    """Its environment has no scikit-learn, so its file repeats the numbers."""
    tree = ast.parse((HERE / "sides" / "federated_flower.py").read_text("utf-8"))
    found = {
        name.id: value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple)
        for name, value in zip(node.targets[0].elts, node.value.elts, strict=True)
        if isinstance(name, ast.Name) and isinstance(value, ast.Constant)
    }
    assert found == {name: getattr(federated_data, name) for name in ("CLASSES", "PER_ROUND", "BATCH", "LR")}


def test_rounds_draw_different_clients_and_always_the_same() -> None:
    one, two = (federated_data.players(number).tolist() for number in (1, 2))
    assert len(set(one)) == federated_data.PER_ROUND
    assert one != two
    assert one == federated_data.players(1).tolist()


def test_the_plain_orth_dion_trains_as_the_emulated_one() -> None:
    rule = ("optimizer.name=orth_dion", "optimizer.lr=1e-3", "optimizer.rank=4")
    scenario = load_scenario(str(HERE / "sides" / "decoder.py"), [*TINY, *rule, "mesh.shards=4", "steps=3"])
    task = build_task(scenario)
    with build_engine(scenario, build_job(scenario, task)) as engine:
        losses = [outcome.report["train_loss"] for outcome in engine.steps(1, 3)]
        emulated = engine.parameters()
    params = leaves_of(task)
    hidden = {spec.name for unit in task.units for spec in unit.params if spec.role == "matrix"}
    plain = DenseOrthDion(
        {name: x for name, x in params.items() if name in hidden},
        [x for name, x in params.items() if name not in hidden],
        4,
        1e-3,
    )
    for step, loss in enumerate(losses, start=1):
        tokens = torch.cat([task.batch(worker, step)[0] for worker in range(4)])
        assert backward(task, params, tokens, 3) == pytest.approx(loss, rel=1e-5)
        plain.step()
        plain.zero_grad()
    for name, x in params.items():
        torch.testing.assert_close(x.detach(), emulated[name], atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("method", ["HSDP, Orth-Dion", "HSDP, top-k with error feedback"])
def test_the_closed_form_of_the_state_is_what_workers_hold(method: str) -> None:
    case = error_feedback.case(QUICK)
    argv = next(side.argv for side in case.sides if side.name == method)
    sets = [argv[place + 1] for place, word in enumerate(argv) if word == "--set"]
    scenario = load_scenario(str(HERE / "sides" / "decoder.py"), sets)
    engine = build_engine(scenario, build_job(scenario, build_task(scenario)))
    assert isinstance(engine, LocalEngine)
    with engine:
        list(engine.steps(1, 1))
        held = sum(x.numel() * x.element_size() for state in engine.states for x in tensors_of(state) if x.ndim)
    assert held == case.details["state_bytes"][method]


def test_results_are_redrawn_and_judged_without_measuring(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample = {"step_seconds": [9.0, 9.0, 2.0], "peak_rss_bytes": 10**9}
    rounds = [{"own": sample, "base": {**sample, "step_seconds": [9.0, 9.0, 1.0]}}]
    question = Question("own over base", step_ratio("own", "base"), "x", 1.5)
    entry = {
        "says": "a test's",
        "rounds": rounds,
        "findings": [measuring.answered(question, rounds)],
        "details": {"overhead": [["own", 4, "own", "base"]]},
    }
    results = {
        "quick": False,
        "machine": measuring.machine(),
        "cases": {"some": entry, "none": {"says": "", "skipped": "why"}},
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert main(["--report", "--out", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("2.00 x", "<= 1.50 x", "NO", "none: skipped: why"))
    assert (tmp_path / "overhead.png").stat().st_size > 5000
    assert missed(results) == ["some: own over base"]
    assert missed({**results, "quick": True}) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--quick"], "--out"),
        (["--only", "nonsense"], "step_time"),
        (["--report", "--out", "/nowhere"], "results.json"),
    ],
)
def test_wrong_arguments_are_answered_in_a_sentence(arguments: list[str], says: str) -> None:
    with pytest.raises(SystemExit, match=says):
        main(arguments)


def test_a_smoke_run_measures_saves_and_keeps_the_others(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(
        json.dumps({"quick": True, "machine": {}, "cases": {"gpu": {"says": "", "skipped": "of before"}}})
    )
    common = ["--quick", "--rounds", "1", "--out", str(tmp_path)]
    assert main([*common, "--only", "many_workers"]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["cases"]["gpu"]["skipped"] == "of before"
    entry = results["cases"]["many_workers"]
    (found,) = entry["rounds"]
    assert all(sample["peak_rss_bytes"] > 10**8 for sample in found.values())
    assert all(finding["median"] > 0 for finding in entry["findings"] if finding["unit"] == "x")
    assert entry["date"]
    assert (tmp_path / "overhead.png").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_smoke_run_of_everything(tmp_path: Path) -> None:
    assert main(["--quick", "--rounds", "1", "--out", str(tmp_path)]) == 0
    cases = json.loads((tmp_path / "results.json").read_text())["cases"]
    assert cases.keys() == all_cases(QUICK).keys()
    assert not [name for name, entry in cases.items() if "failed" in entry]
    assert (tmp_path / "cost_per_worker.png").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_gpu_case_runs_on_the_cpu_with_tiny_sizes() -> None:
    found = SILENT.measure(gpu.case(QUICK, device="cpu"))
    assert all(finding["values"] for finding in found["findings"])
    assert os.environ.get("BENCHMARK_STARTED") is None

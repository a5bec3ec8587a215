"""The command line: what each command calls, exit statuses, sweeps that go on, and a quick ``--help``."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import simdist
from simdist import sweeping
from simdist.cli import app
from simdist.errors import InputError, RunError
from simdist.loading import load_scenario
from simdist.network import topologies
from simdist.optimizers import AdamW, OrthDion, optimizers
from simdist.scenario import Scenario, Sweep
from simdist.yaml_text import parse

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Call the command line in this process; return its exit status, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("SIMDIST_DEBUG", raising=False)

    def called(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            app(list(arguments), prog_name="simdist")
        written = capsys.readouterr()
        return int(ended.value.code or 0), written.out, written.err

    return called


class FakeRuns:
    """Stands in for :mod:`simdist.running`: writes what a run folder needs, and fails where it is told to."""

    def __init__(self) -> None:
        self.scenarios: list[Scenario] = []
        self.arguments: list[dict[str, Any]] = []
        self.failing: dict[int, BaseException] = {}

    def run(
        self,
        scenario: Scenario,
        *,
        out: Path | None,
        progress: bool,
        ray_address: str | None,
        publish: Callable[[Path], None] = lambda folder: None,
    ) -> Path:
        self.scenarios.append(scenario)
        self.arguments.append({"out": out, "progress": progress, "ray_address": ray_address})
        out = out or Path("default")
        out.mkdir(parents=True, exist_ok=True)
        (out / "scenario.yaml").write_text(scenario.to_yaml())
        (out / "environment.json").write_text("{}")
        if scenario.seed in self.failing:
            raise self.failing[scenario.seed]
        summary = {"status": "done", "final_val_loss": 1.25, "simulated_seconds": 75.0, "sent_bytes_total": 1_500_000}
        (out / "summary.json").write_text(json.dumps(summary))
        return out

    def resume(self, folder: Path, changes: list[str], *, progress: bool, ray_address: str | None) -> bool:
        assert changes == []
        self.run(load_scenario(str(folder / "scenario.yaml")), out=folder, progress=progress, ray_address=ray_address)
        return True


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeRuns:
    fake = FakeRuns()
    for name, function in (("running", "run"), ("resuming", "resume")):
        module = types.ModuleType(f"simdist.{name}")
        setattr(module, function, getattr(fake, function))
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(simdist, name, module, raising=False)
    monkeypatch.chdir(tmp_path)
    return fake


@pytest.fixture
def scenario(tmp_path: Path) -> str:
    file = tmp_path / "scenario.yaml"
    file.write_text("name: mine\nworkload: byte_gpt\noptimizer: {name: adamw, lr: 1e-3}\nmesh: {shards: 4}\n")
    return str(file)


def test_help_is_quick() -> None:
    heavy = "[m for m in ('torch', 'ray', 'matplotlib', 'networkx', 'pydantic') if m in sys.modules]"
    code = f"import sys, simdist.cli; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", "heavy imports belong inside the commands"


def test_the_command_as_a_user_calls_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "simdist.cli", "run", str(tmp_path / "no.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: got the scenario")
    assert "Traceback" not in done.stderr


def test_version(call: Call) -> None:
    assert call("--version") == (0, f"simdist {simdist.__version__}\n", "")


@pytest.mark.parametrize("arguments", [["run"], ["fly"], ["run", "x.py", "--nonsense"], ["plan"], ["resume"]])
def test_usage_errors_have_status_2(call: Call, arguments: list[str]) -> None:
    status, _, message = call(*arguments)
    assert status == 2
    assert "Usage" in message


def test_run_hands_everything_over(call: Call, runs: FakeRuns, scenario: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--set", "optimizer.lr=1e-2", "--engine", "ray", "--ray-address", "auto", "--quiet", "--out", str(out)]
    status, printed, errors = call("run", scenario, *options)
    assert (status, errors) == (0, "")
    assert str(out) in printed.replace("\n", "")
    assert runs.arguments == [{"out": out, "progress": False, "ray_address": "auto"}]
    assert runs.scenarios[0].engine.name == "ray"
    assert runs.scenarios[0].optimizer.lr == 1e-2


@pytest.mark.parametrize(
    ("error", "status", "fragments"),
    [
        (InputError("got sand; expected oil"), 2, ["Error: got sand; expected oil"]),
        (RunError("loss is NaN at step 3 under adamw"), 3, ["Error: loss is NaN at step 3"]),
        (KeyboardInterrupt("interrupted; kept in runs/x"), 130, ["Interrupted; kept in runs/x"]),
        (KeyError("oops"), 3, ["simdist itself failed: KeyError: 'oops'", "--debug"]),
    ],
)
def test_errors_have_one_message_and_a_status(
    call: Call, runs: FakeRuns, scenario: str, error: BaseException, status: int, fragments: list[str]
) -> None:
    runs.failing[0] = error
    got, _, message = call("run", scenario)
    assert got == status
    assert "Traceback" not in message
    assert len(message.splitlines()) == 1
    for fragment in fragments:
        assert fragment in message


@pytest.mark.parametrize("how", ["--debug", "SIMDIST_DEBUG"])
def test_tracebacks_on_request(
    call: Call, runs: FakeRuns, scenario: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.failing[0] = KeyError("oops")
    if how == "SIMDIST_DEBUG":
        monkeypatch.setenv(how, "1")
    status, _, message = call(*(["--debug"] if how == "--debug" else []), "run", scenario)
    monkeypatch.delenv("SIMDIST_DEBUG", raising=False)
    assert status == 3
    assert "Traceback" in message
    assert "KeyError: 'oops'" in message


def test_sweeps_skip_what_is_finished(call: Call, runs: FakeRuns, scenario: str, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    command = ["sweep", scenario, "--out", str(out), "--over", "optimizer.lr=1e-3,0.1", "--over", "seed=0,1"]
    status, printed, errors = call(*command)
    assert (status, errors) == (0, "")
    folders = sorted(path.name for path in out.iterdir() if path.is_dir())
    assert folders == ["lr=0.001,seed=0", "lr=0.001,seed=1", "lr=0.1,seed=0", "lr=0.1,seed=1"]
    for text in ("75s", "1.5MB", "1.2500"):
        assert printed.count(text) == 4
    assert len(runs.scenarios) == 4

    (out / folders[2] / "summary.json").unlink()
    status, printed, _ = call(*command[:-1], "seed=0,1,2")
    assert status == 0
    assert [(run.optimizer.lr, run.seed) for run in runs.scenarios[4:]] == [(0.001, 2), (0.1, 0), (0.1, 2)]
    assert printed.count("skipped") == 2 * 3, "once as it happens, once in the table"

    status, _, _ = call("sweep", str(out / "sweep.yaml"), "--out", str(out))
    assert status == 0
    assert len(runs.scenarios) == 7, "sweep.yaml repeats the sweep"

    status, _, message = call(*command, "--set=steps=7")
    assert status == 2
    assert "another scenario" in message
    assert len(runs.scenarios) == 7


def test_a_failed_point_does_not_stop_the_rest(call: Call, runs: FakeRuns, scenario: str, tmp_path: Path) -> None:
    runs.failing = {0: RunError("loss is NaN at step 3"), 1: ValueError("a bug")}
    status, printed, message = call("sweep", scenario, "--over", "seed=0,1,2")
    assert status == 3
    assert [run.seed for run in runs.scenarios] == [0, 1, 2]
    assert "seed=0: loss is NaN at step 3" in message
    assert "seed=1: ValueError: a bug" in message
    assert "2 of 3 points failed" in message
    assert printed.count("1.2500") == 1
    assert (tmp_path / "runs" / "mine-sweep" / "seed=2" / "summary.json").is_file()
    runs.failing = {}
    status, _, _ = call("sweep", scenario, "--over", "seed=0,1,2")
    assert status == 0
    assert [run.seed for run in runs.scenarios] == [0, 1, 2, 0, 1], "only what failed is tried again"


def test_an_interrupted_sweep_stops(call: Call, runs: FakeRuns, scenario: str) -> None:
    runs.failing = {0: KeyboardInterrupt()}
    status, _, message = call("sweep", scenario, "--over", "seed=0,1")
    assert (status, message.splitlines()[0]) == (130, "Interrupted")
    assert "0 of 2 points are in runs/mine-sweep; the same command runs the others" in message
    assert len(runs.scenarios) == 1


def test_points_have_readable_names(scenario: str) -> None:
    base = load_scenario(scenario)
    over: dict[str, list[Any]] = {
        "optimizer": [OrthDion(lr=0.02, rank=4), {"name": "adamw", "lr": 0.1}, AdamW(lr=0.3)],
        "network.bandwidth": ["10Mbit/s", 1e9],
        "wire.params": ["bf16"],
    }
    found = sweeping.points(Sweep(base=base, over=over))
    assert [point.name for point in found] == [
        "optimizer=orth_dion-lr0.02-rank4,bandwidth=10Mbit-s,params=bf16",
        "optimizer=orth_dion-lr0.02-rank4,bandwidth=1e+09,params=bf16",
        "optimizer=adamw-lr0.1,bandwidth=10Mbit-s,params=bf16",
        "optimizer=adamw-lr0.1,bandwidth=1e+09,params=bf16",
        "optimizer=adamw-lr0.3,bandwidth=10Mbit-s,params=bf16",
        "optimizer=adamw-lr0.3,bandwidth=1e+09,params=bf16",
    ]
    assert found[0].scenario.optimizer == OrthDion(lr=0.02, rank=4)
    assert found[3].scenario.optimizer == AdamW(lr=0.1)


def test_names_that_cannot_be_folders_still_differ(scenario: str) -> None:
    base = load_scenario(scenario)
    files = ["file:/a b/c", "file:/a-b/c", "file:/" + "long/" * 60 + "1", "file:/" + "long/" * 60 + "2"]
    names = [point.name for point in sweeping.points(Sweep(base=base, over={"workload.corpus": files}))]
    assert len(set(names)) == 4
    assert all(len(name) < 120 and "/" not in name and " " not in name for name in names)


def test_check_prints_a_scenario_that_can_be_read(call: Call, scenario: str, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("all work and no play makes a dull boy. " * 300)
    changes = ["--set", f"workload.corpus=file:{text}", "--set", "workload.depth=1", "--set", "mesh.replicas=2"]
    status, printed, errors = call("check", scenario, *changes)
    assert (status, errors) == (0, "")
    assert Scenario.from_dict(parse(printed, "a test")) == load_scenario(scenario, changes[1::2])
    assert "# workers: 8 (2 replicas x 4 shards)" in printed
    assert "# parameters: " in printed


def test_list_shows_what_there_is(call: Call) -> None:
    status, printed, errors = call("list")
    assert (status, errors) == (0, "")
    for name in [*optimizers.names(), *topologies.names(), "bf16", "every_step", "byte_gpt", "rtx4090", "custom"]:
        assert name in printed
    status, printed, _ = call("list", "devices")
    assert status == 0
    assert "989 TFLOP/s" in printed
    assert "adamw" not in printed

"""Bad input (issue 2, section 6): each ends with status 2 and one clear message, and never touches anything."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from simdist.cli import app
from simdist.errors import InputError
from simdist.results.folder import claim_folder
from simdist.scenario import Scenario
from simdist.yaml_text import dump

Call = Callable[..., tuple[int, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Call the command line in this process; return its exit status and what it wrote to stderr."""

    def called(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            app(list(arguments), prog_name="simdist")
        return int(ended.value.code or 0), capsys.readouterr().err

    return called


def expect(answer: tuple[int, str], *fragments: str) -> None:
    status, message = answer
    assert status == 2, message
    assert [line.startswith("Error: ") for line in message.splitlines()].count(True) == 1
    assert "Traceback" not in message
    # "write": a rate in bytes is answered with what to write instead
    assert "expected" in message or "write" in message, message
    for fragment in ("got", *fragments):
        assert fragment in message, message


@pytest.fixture
def scenario(tmp_path: Path) -> str:
    """A valid scenario file on a small text."""
    (tmp_path / "text.txt").write_text("all work and no play makes a dull boy. " * 200)
    workload = {"name": "byte_gpt", "width": 16, "depth": 1, "heads": 2, "context": 16, "batch": 2}
    data = {
        "workload": {**workload, "corpus": f"file:{tmp_path / 'text.txt'}"},
        "optimizer": {"name": "orth_dion", "lr": 0.01, "rank": 4},
        "mesh": {"shards": 4},
    }
    file = tmp_path / "scenario.yaml"
    file.write_text(dump(data))
    return str(file)


def test_the_scenario_itself_is_good(call: Call, scenario: str) -> None:
    assert call("check", scenario) == (0, "")


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        # unknown keys, with the nearest known one
        (["optimizer.ranc=4"], ["optimizer.ranc: ", "Did you mean 'rank'?"]),
        (["optimzer.lr=0.1"], ["optimzer: ", "Did you mean 'optimizer'?"]),
        (["mesh.shard=4"], ["mesh.shard: ", "Did you mean 'shards'?"]),
        (["network.bandwith=1e6"], ["network.bandwith: ", "Did you mean 'bandwidth'?"]),
        (["workload.dept=4"], ["workload.dept: ", "Did you mean 'depth'?"]),
        (["sede=1"], ["sede: ", "Did you mean 'seed'?"]),
        (["mesh.shards.x=4"], ["mesh.shards.x: "]),
        # units
        (["network.bandwidth=100MB/s"], ["network.bandwidth: ", "'100MB/s'", "'800Mbit/s'", "'100Mbit/s'"]),
        (["network.bandwidth=100 parsecs"], ["network.bandwidth: ", "'100 parsecs'", "100Mbit/s"]),
        (["network.latency=5MB"], ["network.latency: ", "'5MB'", "5ms"]),
        # zero, negative, NaN
        (["steps=0"], ["steps: got 0; expected a number above zero"]),
        (["steps=-3"], ["steps: got -3"]),
        (["mesh.replicas=0"], ["mesh.replicas: got 0"]),
        (["optimizer.lr=-0.1"], ["optimizer.lr: got -0.1"]),
        (["optimizer.lr=.nan"], ["optimizer.lr: got nan; expected a finite number"]),
        (["optimizer.lr=.inf"], ["optimizer.lr: got inf"]),
        (["network.bandwidth=0"], ["network.bandwidth: got 0"]),
        (["network.bandwidth=nan"], ["network.bandwidth: got nan"]),
        (["network.latency=-1"], ["network.latency: got -1"]),
        (["compute.mfu=0"], ["compute.mfu: got 0"]),
        (["compute.mfu=1.5"], ["compute.mfu: got 1.5; expected a number from 0 to 1"]),
        (["compute.speeds.1=0"], ["compute.speeds.1: got 0"]),
        (["seed=-1"], ["seed: got -1"]),
        (["evaluation.every=-1"], ["evaluation.every: got -1"]),
        # wrong types
        (["steps=many"], ["steps: got 'many'; expected a whole number"]),
        (["steps=1.5"], ["steps: got 1.5; expected a whole number"]),
        (["steps=true"], ["steps: got True"]),
        (["mesh=4"], ["mesh: got 4; expected a section"]),
        (["optimizer=[1, 2]"], ["optimizer: got [1, 2]"]),
        (["mesh.reshard_after_forward=maybe"], ["mesh.reshard_after_forward: got 'maybe'; expected true or false"]),
        (["name=a/b"], ["name: got 'a/b'"]),
        # what fits together
        (["optimizer.rank=17"], ["optimizer.rank 17", "expected at most 16", "optimizer.rank_fraction"]),
        (["mesh.workers=8"], ["mesh: got workers 8 with 1 replicas x 4 shards", "expected workers 4"]),
        (["engine.name=ray", "engine.actors=9"], ["engine.actors: got 9 for 1 x 4 = 4 workers"]),
        (["engine.name=ray", "engine.workers_per_actor=5"], ["engine.workers_per_actor: got 5"]),
        (["engine.name=ray", "engine.actors=3", "engine.workers_per_actor=2"], ["engine.actors: got 3", "2 actors"]),
        (["engine.actors=2"], ["got actors 2 with engine 'inline'", "'ray'"]),
        (["engine.block=stacked"], ["got block 'stacked' with engine 'inline'", "'ray'"]),
        (["compute.speeds.4=0.5"], ["compute.speeds: got worker 4", "from 0 to 3"]),
        (["compute.device=custom"], ["got device 'custom' without peak_flops", "50e12"]),
        (["compute.peak_flops=1e12"], ["got peak_flops 1e+12 with device 'h100'", "'custom'"]),
        # unknown names
        (["optimizer.name=moun"], ["optimizer.name: got unknown optimizer 'moun'", "Did you mean 'muon'?"]),
        (["optimizer=moun"], ["optimizer.name: got unknown optimizer 'moun'"]),
        (["workload.name=byte_gtp"], ["workload.name: ", "Did you mean 'byte_gpt'?"]),
        (["schedule.name=every_stop"], ["schedule.name: ", "Did you mean 'every_step'?"]),
        (["network.topology=stra"], ["network.topology: ", "Did you mean 'star'?"]),
        (["network.collectives=rign"], ["network.collectives: ", "'rign'", "Did you mean 'ring'?"]),
        (["wire.grads=bf61"], ["wire.grads: got unknown codec 'bf61'", "Did you mean 'bf16'?"]),
        (["compute.device=h10"], ["compute.device: got unknown device 'h10'", "Did you mean 'h100'?"]),
        (["workload.corpus=stdlbi"], ["workload.corpus: got unknown corpus 'stdlbi'", "stdlib"]),
        (["engine.name=staked"], ["engine.name: got 'staked'; expected one of inline, stacked, ray", "'stacked'"]),
        (["dtype=float16"], ["dtype: got 'float16'", "float32, float64"]),
        (["optimizer.name=nowhere.py:Mine"], ["optimizer.name: ", "nowhere.py", "does not exist"]),
        (["optimizer.name=nowhere:Mine"], ["optimizer.name: ", "'nowhere' cannot be imported"]),
        (["optimizer.name=json:loads"], ["optimizer.name: ", "a class derived from Rule"]),
        (["optimizer.name=simdist.optimizers:Rule"], ["optimizer.name: ", "abstract", "init, update"]),
        # the overrides themselves
        (["optimizer.lr"], ["--set 'optimizer.lr'", "KEY=VALUE"]),
        (["=3"], ["--set '=3'", "KEY=VALUE"]),
        (["optimizer.lr=[1"], ["--set optimizer.lr=[1", "not valid YAML"]),
        (["optimizer.lr=!!float 1"], ["tag '!!float'", "remove the tag"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and "=" in value[0] else "",
)
def test_bad_values(call: Call, scenario: str, changes: list[str], fragments: list[str]) -> None:
    expect(call("check", scenario, *(f"--set={change}" for change in changes)), *fragments)


def test_several_problems_are_told_at_once(call: Call, scenario: str) -> None:
    answer = call("check", scenario, "--set=steps=0", "--set=optimizer.ranc=3", "--set=dtype=int")
    expect(answer, "steps: got 0", "optimizer.ranc: got an unknown key", "dtype: got 'int'")


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("optimizer: !!python/object:os.system {}", ["line 1", "'!!python/object:os.system'", "remove the tag"]),
        ("steps: 5\nname: !mine x", ["line 2", "tag '!mine'"]),
        ("steps: [1", ["line 1", "not valid YAML"]),
        ("steps: 1\nsteps: 2", ["line 2", "'steps' is given twice"]),
        ("just words", ["got 'just words'", "sections of a scenario"]),
        ("", ["got None"]),
        ("steps: 5", ["workload: got nothing", "optimizer: got nothing"]),
        ("workload: {}\noptimizer: sgd", ["workload.name: got nothing", "byte_gpt"]),
        ("name: \x00", ["not valid YAML"]),
    ],
)
def test_bad_yaml(call: Call, tmp_path: Path, text: str, fragments: list[str]) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    expect(call("check", str(file)), "bad.yaml", *fragments)


PYTHON = "from simdist.optimizers import SGD\nfrom simdist.scenario import Scenario\n"


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("1 / 0", ["line 3", "ZeroDivisionError"]),
        ("def scenario():\n    return {}['lr']", ["line 4", "KeyError", "'lr'"]),
        ("def scenario():\n    return SGD(lr=-1)", ["line 4", "lr: got -1.0; expected a number above zero"]),
        ("def scenario():\n    return SGD(rl=1)", ["line 4", "rl: got an unknown key", "Did you mean 'lr'?"]),
        ("def scenario():\n    return 5", ["got int from scenario()", "simdist.Scenario"]),
        ("def scenari():\n    return 5", ["neither scenario() nor sweep()"]),
        ("def scenario(:\n    return 5", ["line 3", "syntax error"]),
        ("import nowhere_to_be_found", ["line 3", "ModuleNotFoundError"]),
    ],
)
def test_bad_scenario_files(call: Call, tmp_path: Path, text: str, fragments: list[str]) -> None:
    file = tmp_path / "bad.py"
    file.write_text(PYTHON + text)
    expect(call("check", str(file)), "bad.py", *fragments)


def test_missing_files(call: Call, tmp_path: Path) -> None:
    expect(call("check", str(tmp_path / "no.py")), "no.py", "does not exist")
    expect(call("run", str(tmp_path)), str(tmp_path), "without scenario.yaml")
    (tmp_path / "scenario.json").write_text("{}")
    expect(call("run", str(tmp_path / "scenario.json")), "scenario.json", "(.py)", "(.yaml)")


def test_bad_corpora(call: Call, scenario: str, tmp_path: Path) -> None:
    missing, empty, short = tmp_path / "missing.txt", tmp_path / "empty.txt", tmp_path / "short.txt"
    empty.write_text("")
    short.write_text("too short")
    expect(call("check", scenario, f"--set=workload.corpus=file:{missing}"), "missing.txt", "no such file")
    expect(call("check", scenario, f"--set=workload.corpus=file:{empty}"), "empty.txt", "is empty")
    expect(call("check", scenario, f"--set=workload.corpus=file:{short}"), "short.txt", "context")


def network_file(path: Path, nodes: list[str], edges: list[tuple[str, str]]) -> Path:
    link = {"bandwidth": "1Gbit/s", "latency": "1ms"}
    graph: dict[str, Any] = {
        "nodes": [{"id": node} for node in nodes],
        "edges": [{"source": one, "target": other, **link} for one, other in edges],
    }
    path.write_text(json.dumps(graph))
    return path


def test_networks_that_do_not_join_the_workers(call: Call, scenario: str, tmp_path: Path) -> None:
    hosts = [f"worker{i}" for i in range(4)]
    file = network_file(tmp_path / "apart.json", hosts, [("worker0", "worker1"), ("worker2", "worker3")])
    on_file = ["--set=network.topology=file", f"--set=network.path={file}"]
    expect(call("check", scenario, *on_file), "worker0", "worker2")
    network_file(file, hosts[:3], [("worker0", "worker1"), ("worker1", "worker2")])
    expect(call("check", scenario, *on_file), "worker3")
    file.unlink()
    expect(call("check", scenario, *on_file), "apart.json", "does not exist")


def test_cuda_where_there_is_none(call: Call, scenario: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    expect(call("check", scenario, "--set=engine.device=cuda"), "engine.device: got 'cuda'", "expected 'cpu'")


def test_stacked_engines_refuse_workers_out_of_step(call: Call, scenario: str, tmp_path: Path) -> None:
    file = tmp_path / "irregular.py"
    file.write_text(
        "from typing import ClassVar\nfrom simdist.schedules.every_step import EveryStep\n"
        "class Irregular(EveryStep):\n    name: str = 'irregular'\n    lockstep: ClassVar[bool] = False\n"
    )
    irregular = f"--set=schedule.name={file}:Irregular"
    assert call("check", scenario, irregular) == (0, "")
    expect(
        call("check", scenario, irregular, "--engine=stacked"), "engine.name: got 'stacked'", "'irregular'", "lock step"
    )
    on_ray = ["--engine=ray", "--set=engine.block=stacked"]
    expect(call("check", scenario, irregular, *on_ray), "engine.block: got 'stacked'", "'irregular'")


def test_ray_address_without_ray(call: Call, scenario: str) -> None:
    expect(call("run", scenario, "--ray-address=10.0.0.1:6379"), "--ray-address", "10.0.0.1:6379", "--engine ray")


def test_bad_sweeps(call: Call, scenario: str) -> None:
    expect(call("sweep", scenario), "without --over")
    expect(call("sweep", scenario, "--over=optimizer.lr="), "--over 'optimizer.lr='", "KEY=V1,V2")
    expect(call("sweep", scenario, "--over=seed=1", "--over=seed=2"), "--over seed twice")
    expect(call("sweep", scenario, "--over=seed=1,1"), "sweep point seed=1 twice")
    expect(call("sweep", scenario, "--over=seed=1,-1"), "sweep point seed=-1: seed: got -1")


def test_lists_that_do_not_exist(call: Call) -> None:
    expect(call("list", "optimisers"), "'optimisers'", "Did you mean 'optimizers'?")


@pytest.mark.parametrize("kind", ["run", "sweep"])
def test_folders_of_others_are_never_touched(tmp_path: Path, kind: Any) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match=r"got .* is not a folder that simdist made; expected .* choose another --out"):
        claim_folder(tmp_path, kind)
    with pytest.raises(ValueError, match=r"got .*thesis.tex.* is a file; expected a folder"):
        claim_folder(tmp_path / "thesis.tex", kind)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_runs_are_never_overwritten(tmp_path: Path) -> None:
    run = claim_folder(tmp_path / "a" / "run", "run")
    assert run.is_dir()
    assert claim_folder(run, "run") == run, "an empty folder is taken"
    for name in ("scenario.yaml", "environment.json"):
        (run / name).write_text("{}")
    for kind in ("run", "sweep"):
        with pytest.raises(
            ValueError, match=r"got .* already holds a run; expected a new folder: choose .* or delete it"
        ):
            claim_folder(run, kind)  # type: ignore[arg-type]


def test_a_sweep_goes_on_where_a_sweep_began(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text("{}")
    assert claim_folder(tmp_path, "sweep") == tmp_path
    with pytest.raises(ValueError, match="already holds a sweep"):
        claim_folder(tmp_path, "run")


def test_a_package_of_an_extra_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(InputError, match=r"pip install 'simdist\[torch-optimizers\]'"):
        Scenario.from_dict({"workload": "teacher", "optimizer": {"name": "pytorch_optimizer:Lion", "lr": 0.1}})

"""``simdist plan`` as people call it: models, options, tables, folders, and what is wrong with bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from simdist.cli import app
from simdist.communication.trace import ComputeOp
from simdist.loading import load_scenario
from simdist.plan_command import combinations
from simdist.planned import plan
from simdist.planned_memory import working_width
from simdist.results.recorder import read_rows
from simdist.scenario import Scenario

Call = Callable[..., tuple[int, str]]
FACTORY = str(Path(__file__).with_name("user_factory.py"))


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Call the command line in this process; return its exit status, and what it wrote to stdout or stderr."""
    monkeypatch.setenv("COLUMNS", "150")

    def called(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            app(list(arguments), prog_name="simdist")
        status = int(ended.value.code or 0)
        captured = capsys.readouterr()
        return status, captured.err if status else captured.out

    return called


def point(model: str, **changes: Any) -> Scenario:
    (scenario,) = combinations(model, changes, {}).values()
    return scenario


def test_a_preset_is_planned_over_optimizers_into_folders_that_can_be_priced_again(call: Call, tmp_path: Path) -> None:
    out = tmp_path / "plans"
    status, text = call("plan", "gpt2-124m", "--over", "optimizer.name=adamw,dion", "--out", str(out))
    assert status == 0
    for shown in ("124,439,808 parameters", "param_gather, shards", "exposed communication", "fits"):
        assert shown in text
    both = json.loads((out / "plan.json").read_text())["plans"]
    assert set(both) == {"adamw", "dion"}
    assert load_scenario(str(out / "dion")).optimizer.rank_fraction == 0.25  # type: ignore[attr-defined]
    for name in both:
        rows = read_rows(out / name / "ledger.parquet")
        sent = sum(row["sent_bytes_total"] for row in rows)
        assert sent == pytest.approx(both[name]["sent_bytes_total"], rel=1e-12)
        assert json.loads((out / name / "plan.json").read_text()) == both[name]
        assert json.loads((out / name / "summary.json").read_text())["engine"] == "plan"
    # a plan at another bandwidth is what the re-timed plan says
    assert call("retime", str(out), "--set", "network.bandwidth=10Gbit/s")[0] == 0
    slower = plan(point("gpt2-124m", **{"network.bandwidth": "10Gbit/s"}))
    priced = pq.read_table(out / "adamw" / "retimed" / "bandwidth=10Gbit-s" / "steps.parquet")
    assert priced["simulated_seconds"].to_pylist() == [slower.step_seconds]


def test_one_plan_is_one_folder(call: Call, tmp_path: Path) -> None:
    assert call("plan", "gpt2-124m", "--set", "steps=2", "--out", str(tmp_path / "plan"))[0] == 0
    assert len(read_rows(tmp_path / "plan" / "steps.parquet")) == 2
    status, text = call("plan", "gpt2-124m", "--out", str(tmp_path / "plan"))
    assert status == 2
    assert "already holds a run" in text


def test_a_factory_is_planned_by_its_units(call: Call) -> None:
    status, text = call("plan", f"{FACTORY}:make_net", "--set", "optimizer.name=muon")
    assert status == 0
    assert "19,268 parameters" in text
    planned = plan(point(f"{FACTORY}:make_net"))
    computing = [op for wave in planned.ops[0] for op in wave if isinstance(op, ComputeOp)]
    assert [op.tensor for op in computing if op.purpose == "forward"] == ["root", "blocks.0", "blocks.1", "blocks.2"]
    # 40 tokens through three blocks of two layers of 32 x 64, and the read-out
    assert planned.flops["forward"] == 2 * 40 * (3 * 2 * 32 * 64 + 32 * 100)
    assert planned.memory.activations is not None


def test_a_factory_may_be_larger_than_any_machine() -> None:
    planned = plan(point(f"{FACTORY}:make_huge", **{"workload.inputs": f"{FACTORY}:huge_inputs"}))
    assert planned.parameters == 10**11
    assert planned.memory.verdict == "does not fit"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["llama3-9b"], "Did you mean 'llama3-8b'?"),
        (["no/such/file.py"], "does not exist"),
        ([f"{FACTORY}:make_other"], "has no 'make_other'"),
        ([f"{FACTORY}:make_nothing"], "expected an nn.Module"),
        ([f"{FACTORY}:make_huge"], "example_inputs()"),
        ([f"{FACTORY}:make_steered"], "does not look at values"),
        (["gpt2-124m", "--set", "optimizer.rank=4"], "got an unknown key"),
        (["gpt2-124m", "--over", "optimizer.name=adam"], "expected one of"),
        (["gpt2-124m", "--set", "workload.context=2048"], "context of at most 1024"),
        (["gpt2-124m", "--over", "mesh.shards=8,8"], "twice"),
    ],
)
def test_bad_input_is_answered_with_what_to_write(call: Call, arguments: list[str], said: str) -> None:
    status, text = call("plan", *arguments)
    assert status == 2
    assert said in " ".join(text.split())


def test_a_factory_cannot_be_run(call: Call, tmp_path: Path) -> None:
    assert call("plan", f"{FACTORY}:make_net", "--out", str(tmp_path / "plan"))[0] == 0
    status, text = call("run", str(tmp_path / "plan"), "--quiet", "--out", str(tmp_path / "run"))
    assert status == 2
    assert "can be planned, not run" in text


def test_models_are_listed(call: Call) -> None:
    status, text = call("list", "models")
    assert status == 0
    assert "llama3-405b" in text
    assert "assumed" in text


# -- memory -----------------------------------------------------------------------------------------------------------


def test_memory_of_a_plan_by_hand() -> None:
    """Llama 3 8B on 8 shards with AdamW: 4 bytes a number and state, 2 where it works; one unit ahead."""
    planned = plan(point("llama3-8b"))
    numbers = planned.parameters
    root = 2 * 128256 * 4096 + 4096
    block = (numbers - root) // 32
    memory = planned.memory
    assert memory.held["parameters"] == memory.gradients == numbers * 4 / 8
    # two means, and one counter of steps in each stack
    assert memory.held["optimizer_state"] == pytest.approx(2 * numbers * 4 / 8, abs=100)
    assert memory.held["stack_padding"] == memory.held["compression_memory"] == 0
    assert memory.unsharded == 2 * (root + 2 * block + root)
    assert memory.device == 80e9
    ddp = plan(point("llama3-8b", **{"mesh.shards": 1, "mesh.replicas": 8})).memory
    assert (ddp.unsharded, ddp.gradients, ddp.verdict) == (0, numbers * 4, "does not fit")


def test_activations_follow_the_working_format_the_batch_and_checkpointing() -> None:
    one = plan(point("gpt2-124m"))
    assert working_width(one.scenario) == 2
    found = one.memory
    assert found.activations is not None
    assert found.checkpointed is not None
    assert found.checkpointed < found.activations
    wide, two = (plan(point("gpt2-124m", **{key: value})).memory for key, value in WIDER)
    assert wide.activations == pytest.approx(2 * found.activations, rel=1e-3)
    assert two.activations == pytest.approx(2 * found.activations, rel=1e-12)
    # a code is no number format to work in
    assert working_width(point("gpt2-124m", **{"wire.params": "qsdp"})) == 4


WIDER: list[tuple[str, Any]] = [("wire.params", "fp32"), ("workload.batch", 2)]


def test_dummies_of_stacks_are_counted_apart() -> None:
    """12 blocks of GPT-2 have 48 matrices of 768 x 768 and 12 of each other shape; owners are 8."""
    held = plan(point("gpt2-124m", **{"optimizer.name": "muon"})).memory.held
    # the embedding's 50,257 rows are 7 short of equal chunks
    assert held["parameters"] == (124_439_808 + 7 * 768) * 4 / 8
    # parameters and momentum of 4 dummies of both shapes of the MLP
    assert held["stack_padding"] == 2 * 2 * 4 * 768 * 3072 * 4 / 8


@pytest.mark.parametrize(
    ("device", "verdict"),
    [("h100", "fits"), ("cpu-core", "size of the device's memory not known")],
)
def test_the_verdict_is_of_the_device(device: str, verdict: str) -> None:
    assert plan(point("gpt2-124m", **{"compute.device": device})).memory.verdict == verdict


def test_a_device_of_ones_own_has_the_memory_that_it_is_given() -> None:
    own = {"compute.device": "custom", "compute.peak_flops": 1e14}
    needed = plan(point("gpt2-124m", **own)).memory
    between = (needed.total(checkpointing=False) + needed.total(checkpointing=True)) / 2
    for memory, verdict in ((between, "fits with activation checkpointing"), (1e6, "does not fit")):
        found = plan(point("gpt2-124m", **own, **{"compute.memory": int(memory)})).memory
        assert found.verdict == verdict

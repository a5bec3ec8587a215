"""Torch optimizers in scenarios: found by import path, saved and read again, refused with reasons, on all engines."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from simdist.assembly import build_engine, build_job, build_task
from simdist.cli import app
from simdist.errors import InputError, ProgramError
from simdist.execution.engine import LocalEngine
from simdist.loading import load_scenario, override, parse_set
from simdist.optimizers import AdamW
from simdist.optimizers.torch_optimizer import TorchOptimizer
from simdist.running import run
from simdist.scenario import Scenario, check_fits
from simdist.yaml_text import parse

# square, as SOAP's eigenvectors of a Gram matrix without full rank are decided by rounding
SMALL: dict[str, Any] = {
    "steps": 3,
    "workload": {"name": "teacher", "rows": 7, "columns": 7},
    "mesh": {"replicas": 2, "shards": 2},
    "lr_schedule": {"warmup": 2},
}
LOOKAHEAD = {"name": "pytorch_optimizer:Lookahead", "lr": 0.05, "k": 2, "base": {"name": "torch.optim:SGD"}}
CHOICES: list[Any] = [
    "pytorch_optimizer:AdaBelief",
    {"name": "torch.optim:NAdam", "lr": 0.01, "betas": [0.8, 0.9]},
    {"name": "pytorch_optimizer:DAdaptAdam"},  # growth_rate is infinite
    {"name": "pytorch_optimizer:Muon", "group": {"use_muon": True}, "auxiliary": {"lr": 0.01}},
    LOOKAHEAD,
]


def scenario(optimizer: Any, **changes: Any) -> Scenario:
    return Scenario.from_dict({**SMALL, "optimizer": optimizer, **changes})


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_saved_scenarios_come_back_equal(choice: Any) -> None:
    first = scenario(choice)
    assert isinstance(first.optimizer, TorchOptimizer)
    assert Scenario.from_dict(first.to_dict()) == first
    assert Scenario.from_dict(parse(first.to_yaml(), "a test")) == first
    assert first.to_dict()["optimizer"]["name"] == (choice if isinstance(choice, str) else choice["name"])


def test_overrides_reach_the_class_in_any_order() -> None:
    small = scenario({"name": "adamw", "lr": 0.5})
    texts = ["optimizer.name=pytorch_optimizer:AdaBelief", "optimizer.betas=[0.5, 0.6]", "optimizer.lr=0.125"]
    found = [override(small, parse_set(order)).optimizer for order in itertools.permutations(texts)]
    assert all(rule == found[0] for rule in found)
    (made,) = {type(rule) for rule in found}
    assert made.model_fields.keys() >= {"rectify", "eps"}
    optimizer: Any = found[0]
    assert (optimizer.lr, optimizer.betas) == (0.125, (0.5, 0.6))
    group = optimizer.make(torch.nn.Parameter(torch.ones(2)), decay=True).param_groups[0]
    assert (group["lr"], group["betas"]) == (0.125, (0.5, 0.6))
    matrices = override(scenario("pytorch_optimizer:SOAP"), parse_set(["optimizer.auxiliary={lr: 0.25}"])).optimizer
    assert matrices.rule_for("vector") == AdamW(lr=0.25)
    assert matrices.rule_for("matrix") == matrices


OWN = """
import torch

class Plain(torch.optim.Optimizer):
    def __init__(self, params, lr, twist: float = 0.5, strikes: int = 0):
        for p in (params := list(params)):
            assert p.ndim, "knows no groups"
        super().__init__(params, {"lr": lr, "twist": twist})
        self.strikes, self.steps = strikes, 0

    @torch.no_grad()
    def step(self, closure=None):
        self.steps += 1
        if self.steps == self.strikes:
            raise RuntimeError("no more")
        for group in self.param_groups:
            for p in group["params"]:
                p -= group["lr"] * group["twist"] * self.steps * p.grad
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    return f"{file}:Plain"


def test_a_class_in_a_file_of_ones_own(own: str, tmp_path: Path) -> None:
    first = scenario({"name": own, "lr": 0.01, "twist": 0.25})
    saved = tmp_path / "scenario.yaml"
    saved.write_text(first.to_yaml())
    assert load_scenario(str(saved)) == first
    assert first.to_dict()["optimizer"]["name"] == own
    assert first.optimizer.rule_for("matrix") is first.optimizer
    run(first, tmp_path / "runs", progress=False)


def test_a_step_that_fails_names_class_and_parameter(own: str, tmp_path: Path) -> None:
    failing = scenario({"name": own, "lr": 0.01, "strikes": 3})
    with pytest.raises(ProgramError, match=r"optimizer Plain failed on '\S+' in its step 3: RuntimeError: no more"):
        run(failing, tmp_path / "runs", progress=False)


def test_shards_are_tried_out_with_a_class_of_ones_own(tmp_path: Path, own: str) -> None:
    assert scenario({"name": own, "lr": 0.1, "runs_on": "shards"}).optimizer.on_shards  # type: ignore[attr-defined]
    assert not scenario({"name": own, "lr": 0.1}).optimizer.on_shards  # type: ignore[attr-defined]
    file = tmp_path / "normed.py"
    file.write_text(OWN.replace("* p.grad", "* p.grad / p.grad.norm()"))
    with pytest.raises(
        InputError, match=r"optimizer: .*Plain, which does not act.*steps on shards differ by [0-9.e-]+"
    ):
        scenario({"name": f"{file}:Plain", "lr": 0.1, "runs_on": "shards"})
    file = tmp_path / "flat.py"
    file.write_text(
        OWN.replace("* p.grad", "* p.grad @ torch.eye(p.shape[1], dtype=p.dtype) if p.ndim == 2 else 1 / 0")
    )
    with pytest.raises(InputError, match=r"steps on shards differ by inf"):
        scenario({"name": f"{file}:Plain", "lr": 0.1, "runs_on": "shards"})


REFUSED: list[tuple[Any, str]] = [
    ({"name": "torch.optim:NAdam", "beta": 1}, r"optimizer\.beta: got an unknown key.*Did you mean 'betas'\?"),
    ({"name": "torch.optim:SGD", "lr": "abc"}, r"optimizer\.lr: got 'abc'; expected a number"),
    ({"name": "torch.optim:SGD", "nesterov": True}, r"optimizer: SGD refuses its arguments: ValueError: Nesterov"),
    ({"name": "torch.optim:Rprop", "weight_decay": 1}, r"optimizer\.weight_decay: .*takes no weight_decay; expected 0"),
    ("torch.optim:LBFGS", r"optimizer\.name: .*LBFGS, whose step\(closure\) computes the loss again"),
    ("torch.optim:SparseAdam", r"does not support dense gradients"),
    ("torch:Tensor", r"derived from Rule or torch\.optim\.Optimizer"),
    ("pytorch_optimizer:SAM", r"SAM, which takes two gradients per step"),
    ("pytorch_optimizer:SophiaH", r"SophiaH, whose step\(\) fails after one gradient"),
    ("pytorch_optimizer:AdamMini", r"takes a model instead of parameters"),
    ("pytorch_optimizer:AliG", r"takes no learning rate 'lr'"),
    ("pytorch_optimizer:GSAM", r"needs the argument 'base_optimizer'"),
    ("pytorch_optimizer:EmoNavi", r"steers by the loss"),
    ("pytorch_optimizer:PCGrad", r"acts in pc_backward\(\)"),
    ("pytorch_optimizer:Muon", r"optimizer: Muon refuses its arguments: ValueError: `use_muon` must be set"),
    ("pytorch_optimizer:Lookahead", r"optimizer\.base: got None for Lookahead; expected \{name: torch\.optim:SGD"),
    ({**LOOKAHEAD, "base": {"name": "torch.optim:SGD", "momentums": 1}}, r"base\.momentums: got an unknown key"),
    ({**LOOKAHEAD, "base": {"name": "torch.optim:SGD", "momentum": "x"}}, r"base\.momentum: got 'x'"),
    ({**LOOKAHEAD, "base": {"name": "adamw"}}, r"expected the import path of a torch optimizer"),
    (
        {**LOOKAHEAD, "base": {"name": "pytorch_optimizer:ScheduleFreeSGD"}},
        r"which evaluates other parameters than it trains .*while Lookahead switches no modes",
    ),
    (
        {"name": "pytorch_optimizer:SPlus", "gather_parameters": True},
        r"gather_parameters true for SPlus, whose eval\(\) needs whole parameters",
    ),
    ({"name": "torch.optim:SGD", "base": {"name": "torch.optim:SGD"}}, r"optimizer\.base: .*expected null"),
    ({"name": "torch.optim:SGD", "kwargs": {"a": 1}}, r"optimizer\.kwargs: .*SGD takes no \*\*kwargs"),
    ({"name": "pytorch_optimizer:Lion", "kwargs": {"lr": 1}}, r"optimizer\.kwargs: got lr; expected .*not in it"),
    (
        {"name": "pytorch_optimizer:Lamb", "runs_on": "shards"},
        r"pytorch_optimizer:Lamb, which is not among the classes",
    ),
    ({"name": "torch.optim:Muon", "runs_on": "shards"}, r"torch\.optim:Muon, which is not among the classes"),
    ({"name": "torch.optim:SGD", "gather_parameters": True}, r"runs on shards and gathers nothing"),
]


@pytest.mark.parametrize(("choice", "message"), REFUSED, ids=[str(choice) for choice, _ in REFUSED])
def test_what_cannot_be_a_rule_is_refused_with_the_reason(choice: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        scenario(choice)
    assert "\n" not in str(caught.value) or choice == "pytorch_optimizer:Lookahead"


def test_a_class_for_matrices_only_says_so_before_the_run() -> None:
    muon = scenario("torch.optim:Muon")
    with pytest.raises(InputError, match=r"of shape \(8,\).*2D parameters.*write optimizer\.auxiliary: \{lr: 0\.001\}"):
        muon.optimizer.check((8,), "bias", muon.mesh.shape)
    check_fits(muon, build_task(muon).units)


def test_simdist_check_takes_them(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "one.yaml"
    file.write_text(scenario(LOOKAHEAD).to_yaml())
    with pytest.raises(SystemExit) as done:
        app(["check", str(file)], prog_name="simdist")
    assert not done.value.code
    assert re.search(r"name: pytorch_optimizer:Lookahead", capsys.readouterr().out)


#: elementwise, on gathered tensors, with random draws, wrapped, hidden matrices only
RUN: list[Any] = [
    "pytorch_optimizer:AdaBelief",
    {"name": "pytorch_optimizer:SOAP", "precondition_frequency": 2},
    {"name": "pytorch_optimizer:Kron", "balance_prob": 0.5},
    LOOKAHEAD,
    {"name": "torch.optim:Muon", "lr": 0.01, "auxiliary": {"lr": 0.01}},
]


def outcome(choice: Any, engine: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the summary of a run."""
    chosen = scenario(choice, engine=engine)
    summary: dict[str, Any] = json.loads((run(chosen, folder, progress=False) / "summary.json").read_text())
    return summary


def parameters(choice: Any, engine: str) -> dict[str, Tensor]:
    """Return the last parameters, in double precision, which some classes need to forgive another order of sums."""
    exact = dict.fromkeys(("params", "grads", "factors", "statistics"), "fp64")
    chosen = scenario(choice, engine={"name": engine}, dtype="float64", wire=exact)
    with build_engine(chosen, build_job(chosen, build_task(chosen))) as trained:
        for _ in trained.steps(1, chosen.steps):
            pass
        return trained.parameters()


SAME = ("ledger_sha256", "simulated_seconds", "sent_bytes_total")


@pytest.mark.parametrize("choice", RUN, ids=str)
def test_stacked_is_inline(choice: Any, tmp_path: Path) -> None:
    inline, stacked = (outcome(choice, {"name": name}, tmp_path / name) for name in ("inline", "stacked"))
    assert {key: inline[key] for key in SAME} == {key: stacked[key] for key in SAME}
    expected, got = parameters(choice, "inline"), parameters(choice, "stacked")
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=1e-7)


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("choice", RUN[:2], ids=str)
def test_actors_change_no_bit(choice: Any, tmp_path: Path) -> None:
    inline = outcome(choice, {"name": "inline"}, tmp_path / "inline")
    there = outcome(choice, {"name": "ray", "actors": 2}, tmp_path / "ray")
    for key in (*SAME, "params_sha256", "final_train_loss"):
        assert inline[key] == there[key], key


def test_the_ledger_shows_what_is_gathered(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    def sent(choice: Any, folder: str) -> list[tuple[int, str, str, int]]:
        rows = pq.read_table(run(scenario(choice), tmp_path / folder, progress=False) / "ledger.parquet").to_pylist()
        booked = [row for row in rows if row["purpose"] == "optimizer"]
        assert all(row["axis"] == "shards" for row in booked)
        return sorted({(row["step"], row["op"], row["tensor"], row["payload_bytes"]) for row in booked})

    assert sent("pytorch_optimizer:AdaBelief", "shards") == []
    whole = 4 * 2 * 7 * 7  # both matrices, with a row of padding less than 2 x 4
    gathered = sent({"name": "pytorch_optimizer:Lamb", "auxiliary": {"lr": 0.01}}, "gathered")
    matrices = "matrices.0+matrices.1"
    assert [(step, op, tensor) for step, op, tensor, _ in gathered] == [
        (1, "all_gather", f"{matrices}:gradient"),
        (1, "all_gather", f"{matrices}:parameter"),
        (2, "all_gather", f"{matrices}:gradient"),
        (3, "all_gather", f"{matrices}:gradient"),
    ]
    assert {size for *_, size in gathered} == {whole // 7 * 8}


def test_rounded_wires_do_not_round_the_parameters_in_every_step(tmp_path: Path) -> None:
    """Kept parameters start from what travelled; gathered ones only lend their rounded values to the step."""

    def last(**settings: Any) -> Tensor:
        chosen = scenario({"name": "torch.optim:SGD", "lr": 1e-6, "runs_on": "gathered", **settings}, wire=ROUNDED)
        with build_engine(chosen, build_job(chosen, build_task(chosen))) as trained:
            for _ in trained.steps(1, chosen.steps):
                pass
            assert isinstance(trained, LocalEngine)
            (matrices,) = (x for x in trained.states[0].params if x.ndim == 3)
            return matrices[0]

    start = build_task(scenario("torch.optim:SGD")).initial()["matrices.0"][:4]
    moved = float((last(gather_parameters=True) - start).abs().max())
    assert 0 < moved < 1e-4, "the rate is tiny, and so is each step: nothing was rounded"
    rounding = float((last() - start).abs().max())
    assert 1e-4 < rounding < 0.01, "to the eight bits of bfloat16, once"


ROUNDED = {"params": "bf16"}

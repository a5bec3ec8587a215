"""Torch optimizers that evaluate other parameters than they train (``train()``, ``eval()``): both as in the class."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from simdist.errors import InputError, ProgramError
from simdist.optimizers import SGD, Assignment, MeshShape
from simdist.optimizers.torch_optimizer import TorchOptimizer, adapted, optimizers, torch_rule
from simdist.program import Worker
from simdist.program.state import to_plain
from tests.optimizers.harness import Before, Cohort, Coroutines, Driver, train
from tests.optimizers.torch_judge import PARAMETERS, STEPS, Make, alike, lives

BASE = {"name": "torch.optim:RMSprop", "momentum": 0.5}


def rule_of(path: str, **arguments: Any) -> TorchOptimizer:
    made = adapted(optimizers.get(path))
    assert made is not None
    return made(**{"lr": 0.05, **arguments})


#: class, arguments, whether on shards
MODES: list[tuple[str, dict[str, Any], bool]] = [
    ("pytorch_optimizer:ScheduleFreeAdamW", {"weight_decay": 0.1, "warmup_steps": 3, "ams_bound": True}, True),
    ("pytorch_optimizer:ScheduleFreeAdamW", {"runs_on": "gathered", "betas": (0.8, 0.9), "r": 1.0}, False),
    ("pytorch_optimizer:ScheduleFreeRAdam", {"betas": (0.9, 0.9), "weight_decay": 0.1}, True),
    ("pytorch_optimizer:ScheduleFreeRAdam", {"betas": (0.8, 0.5), "silent_sgd_phase": False}, True),
    ("pytorch_optimizer:ScheduleFreeSGD", {"weight_decay": 0.1, "momentum": 0.7}, True),
    ("pytorch_optimizer:ScheduleFreeSGD", {"runs_on": "gathered"}, False),
    ("pytorch_optimizer:ScheduleFreeWrapper", {"base": BASE, "weight_decay": 0.1, "momentum": 0.8}, False),
    ("pytorch_optimizer:SPlus", {"inverse_steps": 2, "ema_rate": 0.9, "weight_decay": 0.5}, False),
]
RUNS: list[tuple[Driver, MeshShape]] = [
    (driver, mesh)
    for driver in (Coroutines(), Cohort())
    for mesh in (MeshShape(1, 1), MeshShape(1, 4), MeshShape(2, 2))
]


def make_of(rule: TorchOptimizer, arguments: dict[str, Any]) -> Make:
    own = {key: value for key, value in arguments.items() if key not in ("base", "runs_on")}

    def make(parameters: list[torch.nn.Parameter], no_decay: dict[str, float]) -> torch.optim.Optimizer:
        if "base" in arguments:
            params: Any = torch.optim.RMSprop(parameters, lr=rule.lr, momentum=0.5)
            return rule.torch_class(params, **{**own, **no_decay})
        return rule.torch_class(parameters, lr=rule.lr, **{**own, **no_decay})

    return make


def laid_out(assignment: Assignment, values: dict[str, Tensor], like: Tensor, worker: Worker) -> Tensor:
    """Return this worker's rows of whole parameters, with zeros for the padding, as a rule has them."""
    stack = assignment.stack
    whole = torch.zeros(stack.count, stack.rows * stack.mesh.shards, *stack.shape[1:], dtype=like.dtype)
    for i, name in enumerate(stack.names):
        whole[i, : stack.shape[0]] = values[name]
    whole = whole.reshape((1,) * (like.ndim - whole.ndim) + whole.shape)
    mine: Tensor = worker.mesh.shards.share(whole, -len(stack.shape))
    return mine


@pytest.mark.parametrize(("driver", "mesh"), RUNS, ids=[f"{driver.name} {mesh}" for driver, mesh in RUNS])
@pytest.mark.parametrize(("path", "arguments", "on_shards"), MODES, ids=[f"{path} {said}" for path, said, _ in MODES])
def test_trained_and_evaluated_parameters_are_those_of_the_class(
    path: str, arguments: dict[str, Any], on_shards: bool, driver: Driver, mesh: MeshShape
) -> None:
    rule, gradient = rule_of(path, **arguments), alike(PARAMETERS)
    assert rule.on_shards == on_shards
    make = make_of(rule, arguments)
    expected = {p.name: list(lives(make, p, gradient)) for p in PARAMETERS}
    assert all((trained - judged).abs().max() > 1e-6 for *_, (trained, judged) in expected.values())
    seen = 0

    def compare(step: int, assignment: Assignment, x: Tensor, grad: Tensor, state: Any, worker: Worker) -> Any:
        nonlocal seen
        judged = assignment.rule.evaluated(assignment.stack, x, state, worker)
        if step == 0:
            assert judged is x
        else:
            for got, which in ((x, 0), (judged, 1)):
                values = {name: expected[name][step - 1][which] for name in assignment.stack.names}
                want = laid_out(assignment, values, got, worker)
                torch.testing.assert_close(got, want.expand_as(got), rtol=0, atol=1e-10)
            seen += 1
        return x, grad, state

    train(driver, mesh, rule, PARAMETERS, gradient, steps=STEPS + 1, before=compare)
    members = 1 if isinstance(driver, Cohort) else mesh.workers
    assert seen == STEPS * 2 * members, "two stacks"


def saved(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(to_plain(value), file)
    return file.getvalue()


def judging(step: int, assignment: Assignment, x: Tensor, grad: Tensor, state: Any, worker: Worker) -> Any:
    """Evaluate before every step; the state and the parameters keep every bit, and a second look sees the same."""
    before = saved((x, state))
    one, other = (assignment.rule.evaluated(assignment.stack, x, state, worker) for _ in range(2))
    assert torch.equal(one, other)
    assert saved((x, state)) == before
    return x, grad, state


@pytest.mark.parametrize(("path", "arguments", "on_shards"), MODES[1:8:2], ids=[path for path, *_ in MODES[1:8:2]])
@pytest.mark.parametrize("driver", [Coroutines(), Cohort()], ids=lambda driver: driver.name)
def test_evaluation_changes_nothing_and_sends_nothing(
    path: str, arguments: dict[str, Any], on_shards: bool, driver: Driver
) -> None:
    rule, gradient, mesh = rule_of(path, **arguments), alike(PARAMETERS), MeshShape(2, 2)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()

    def outcome(hook: Before | None) -> tuple[list[Tensor], Any, float]:
        done = train(driver, mesh, rule, PARAMETERS, gradient, steps=4, before=hook)
        return [x for each in done.results for x in each.shards], done.transfers, done.flops

    plain, watched = outcome(None), outcome(judging)
    assert all(torch.equal(x, y) for x, y in zip(plain[0], watched[0], strict=True))
    assert plain[1:] == watched[1:]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_workers_that_drift_apart_are_evaluated_each_by_itself() -> None:
    """Replicas whose gradients have opposite signs, as could be under a schedule of local steps."""
    mesh = MeshShape(2, 2)
    for path, arguments, _ in (MODES[0], MODES[5], MODES[7]):
        judged: dict[tuple[str, int, str], Tensor] = {}

        def apart(step: int, assignment: Assignment, x: Tensor, grad: Tensor, state: Any, worker: Worker) -> Any:
            factor = worker.ops.each(lambda w: torch.tensor(1.0 - 2.0 * (w // mesh.shards), dtype=grad.dtype))
            new = assignment.rule.evaluated(assignment.stack, x, state, worker)
            name = assignment.stack.title
            if worker.index is not None:
                judged["inline", worker.index, name] = new  # noqa: B023 - used within this round of the loop
            elif step:
                for w in range(mesh.workers):
                    judged["stacked", w, name] = new[divmod(w, mesh.shards)]  # noqa: B023
            return x, grad * factor.reshape(*factor.shape, *(1,) * (grad.ndim - factor.ndim)), state

        for driver in (Coroutines(), Cohort()):
            train(driver, mesh, rule_of(path, **arguments), PARAMETERS, alike(PARAMETERS), steps=4, before=apart)
        assert len(judged) == 2 * 2 * mesh.workers
        for (_, w, name), value in judged.items():
            torch.testing.assert_close(value, judged["inline", w, name], rtol=0, atol=1e-12)
        assert not torch.equal(judged["inline", 0, "v"], judged["inline", 2, "v"])


class Late(torch.optim.SGD):
    """Starts in eval mode, counts switches, and hands out half of what it trains."""

    def __init__(self, params: Any, lr: float = 0.1, fails: bool = False, normed: bool = False) -> None:
        super().__init__(params, lr=lr)
        self.training, self.switched, self.fails, self.normed = False, 0, fails, normed

    def train(self) -> None:
        self.training = True
        self.switched += 1

    @torch.no_grad()
    def eval(self) -> None:
        (p,) = self.param_groups[0]["params"]
        if self.fails and p.shape == PARAMETERS[-1].shape:
            raise RuntimeError("no halves")
        p.mul_(0.5 / p.norm() if self.normed else 0.5)
        self.training = False

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert self.training, "not in train mode"
        assert self.switched == 1, "switched without need"
        super().step()


def test_a_class_of_ones_own_that_must_be_switched_to_training() -> None:
    rule = torch_rule(Late)(lr=0.1)
    plain = SGD(lr=0.1)
    got, expected = (
        train(Cohort(), MeshShape(1, 2), each, PARAMETERS, alike(PARAMETERS)).results[0] for each in (rule, plain)
    )
    for name, value in expected.parameters.items():
        torch.testing.assert_close(got.parameters[name], value, rtol=0, atol=1e-12)


def test_an_eval_that_fails_names_class_and_parameter() -> None:
    rule = torch_rule(Late)(lr=0.1, fails=True)
    with pytest.raises(ProgramError, match=r"optimizer Late failed on 'v' in its eval\(\): RuntimeError: no halves"):
        train(Coroutines(), MeshShape(1, 2), rule, PARAMETERS, alike(PARAMETERS), before=judging)


def test_shards_are_tried_out_in_eval_mode_too() -> None:
    assert torch_rule(Late)(lr=0.1, runs_on="shards").on_shards
    with pytest.raises(ValidationError, match=r"Late, which does not act on each number by itself"):
        torch_rule(Late)(lr=0.1, normed=True, runs_on="shards")


def test_parameters_that_a_schedule_changes_are_noticed() -> None:
    rule = rule_of("pytorch_optimizer:SPlus")

    def shifted(step: int, assignment: Assignment, x: Tensor, grad: Tensor, state: Any, worker: Worker) -> Any:
        if step == 2:
            assignment.rule.evaluated(assignment.stack, 0.5 * x, state, worker)
        return x, grad, state

    with pytest.raises(ProgramError, match="the schedule changed 'a"):
        train(Cohort(), MeshShape(1, 4), rule, PARAMETERS, alike(PARAMETERS), before=shifted)
    with pytest.raises((InputError, ValidationError), match="whole parameters"):
        rule_of("pytorch_optimizer:SPlus", gather_parameters=True)

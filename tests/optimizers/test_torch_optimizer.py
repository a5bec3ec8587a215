"""Torch optimizers as rules on gathered tensors: the class itself on every mesh, booked traffic, explicit states."""

from __future__ import annotations

import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from simdist.errors import ProgramError
from simdist.optimizers import AdamW, Assignment, MeshShape, Muon
from simdist.optimizers.torch_optimizer import TorchOptimizer, TorchState, adapted, optimizers
from simdist.program import Worker
from simdist.program.state import Loose, from_plain, to_plain
from tests.optimizers.harness import Cohort, Coroutines, Driver, Parameter, first_value, train
from tests.optimizers.torch_judge import PARAMETERS, STEPS, agrees, alike, alive

AUXILIARY = AdamW(lr=0.1)
GALORE = {"rank": 2, "update_proj_gap": 2, "scale": 1.0, "projection_type": "std"}


def rule_of(path: str, **arguments: Any) -> TorchOptimizer:
    made = adapted(optimizers.get(path))
    assert made is not None
    return made(**{"lr": 0.05, **arguments})


#: class, arguments, whether hidden matrices only
GATHERED: list[tuple[str, dict[str, Any], bool]] = [
    ("torch.optim:Adafactor", {}, False),
    ("torch.optim:Muon", {}, True),
    ("pytorch_optimizer:AdaShift", {"keep_num": 2}, False),
    ("pytorch_optimizer:AdamP", {"weight_decay": 0.1}, False),
    ("pytorch_optimizer:CAME", {}, False),
    ("pytorch_optimizer:DAdaptAdam", {"lr": 1.0}, False),
    ("pytorch_optimizer:GaLore", {"group": GALORE}, True),
    ("pytorch_optimizer:Kron", {"balance_prob": 0.5}, False),
    ("pytorch_optimizer:Lamb", {}, False),
    ("pytorch_optimizer:Muon", {"group": {"use_muon": True}}, True),
    ("pytorch_optimizer:Nero", {}, False),
    ("pytorch_optimizer:Prodigy", {"lr": 1.0, "d0": 1e-3}, False),
    ("pytorch_optimizer:SPAM", {"density": 0.5, "warmup_epoch": 2, "update_proj_gap": 2}, True),
    ("pytorch_optimizer:SOAP", {"precondition_frequency": 2}, False),
    ("pytorch_optimizer:ScalableShampoo", {"block_size": 4, "preconditioning_compute_steps": 2}, False),
    ("pytorch_optimizer:Shampoo", {}, False),
    ("pytorch_optimizer:StableAdamW", {}, False),
]
RUNS: list[tuple[Driver, MeshShape]] = [
    (Coroutines(), MeshShape(1, 1)),
    (Coroutines(), MeshShape(2, 2)),
    (Cohort(), MeshShape(1, 4)),
]


@pytest.mark.parametrize(("driver", "mesh"), RUNS, ids=["alone", "inline 2x2", "stacked 1x4"])
@pytest.mark.parametrize(("path", "arguments", "matrices"), GATHERED, ids=[path for path, *_ in GATHERED])
def test_trains_as_the_class_itself(
    path: str, arguments: dict[str, Any], matrices: bool, driver: Driver, mesh: MeshShape
) -> None:
    rule = rule_of(path, **arguments, **({"auxiliary": AUXILIARY} if matrices else {}))
    assert not rule.on_shards
    own = {key: value for key, value in arguments.items() if key not in ("group", "lr")}

    def make(ps: list[torch.nn.Parameter], no_decay: dict[str, float]) -> torch.optim.Optimizer:
        takes = no_decay if "weight_decay" in rule.signature.arguments else {}
        params: Any = [{"params": ps, **arguments["group"]}] if "group" in arguments else ps
        return rule.torch_class(params, lr=rule.lr, **{**own, **takes})

    outcome = agrees(rule, make, mesh, driver)
    if mesh.replicas > 1:
        results = outcome.results
        for w, trained in enumerate(results):
            twin = results[w % mesh.shards]
            assert all(torch.equal(x, y) for x, y in zip(trained.shards, twin.shards, strict=True))


def test_lookahead_wraps_another_optimizer() -> None:
    import pytorch_optimizer

    base = {"name": "torch.optim:SGD", "momentum": 0.9, "weight_decay": 0.1}
    rule = rule_of("pytorch_optimizer:Lookahead", k=2, base=base)

    def make(ps: list[torch.nn.Parameter], no_decay: dict[str, float]) -> torch.optim.Optimizer:
        inner = torch.optim.SGD(ps, lr=0.05, **{"momentum": 0.9, "weight_decay": 0.1, **no_decay})
        return pytorch_optimizer.Lookahead(inner, k=2)

    for driver, mesh in RUNS:
        agrees(rule, make, mesh, driver)


MATRIX = [Parameter("a", (7, 4)), Parameter("b", (7, 4))]


@pytest.mark.parametrize("mesh", [MeshShape(1, 4), MeshShape(2, 4), MeshShape(4, 1)], ids=str)
@pytest.mark.parametrize("every_step", [False, True])
def test_gathering_is_booked(mesh: MeshShape, every_step: bool) -> None:
    """(F-1) rows n numbers a matrix for the gradient in every step, and as many for the parameter: once, or too."""
    rule = rule_of("torch.optim:SGD", runs_on="gathered", gather_parameters=every_step, momentum=0.9)
    outcome = train(Cohort(), mesh, rule, MATRIX, alike(MATRIX), steps=STEPS)
    gathers = STEPS + (STEPS if every_step else 1)
    rows = -(-7 // mesh.shards)
    assert outcome.sent(factors=4, params=4) == gathers * (mesh.shards - 1) * rows * 4 * len(MATRIX) * 4
    if mesh.shards > 1:
        first = [(t.op, t.axis, t.tensor, t.wire) for t in outcome.transfers if t.purpose == "optimizer"][:3]
        assert first[:2] == [
            ("AllGather", "shards", "a+b:gradient", "factors"),
            ("AllGather", "shards", "a+b:parameter", "params"),
        ]
        assert first[2][2] == "a+b:gradient"
    plain = train(Cohort(), mesh, rule_of("torch.optim:SGD", momentum=0.9), MATRIX, alike(MATRIX), steps=STEPS)
    for name, value in plain.results[0].parameters.items():
        torch.testing.assert_close(outcome.results[0].parameters[name], value, rtol=0, atol=1e-12)


def shifted(step: int, assignment: Assignment, x: Tensor, grad: Tensor, state: Any, worker: Worker) -> Any:
    """A schedule that changes parameters between steps."""
    return (0.5 * x if step == 2 else x), grad, state


def test_parameters_that_a_schedule_changes_are_noticed_or_gathered() -> None:
    mesh = MeshShape(1, 4)
    with pytest.raises(ProgramError, match=r"schedule changed 'a\+b'.*gather_parameters: true"):
        train(Cohort(), mesh, rule_of("pytorch_optimizer:Lamb"), MATRIX, alike(MATRIX), before=shifted)
    rule = rule_of("pytorch_optimizer:Lamb", gather_parameters=True)
    got, expected = (
        train(Cohort(), each, rule, MATRIX, alike(MATRIX), before=shifted).results[0].parameters["a"]
        for each in (mesh, MeshShape(1, 1))
    )
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


def test_is_our_own_adamw_and_close_to_our_own_muon() -> None:
    """Weight decay goes to hidden matrices only, as with every rule."""
    ours = AdamW(lr=0.05, betas=(0.8, 0.9), weight_decay=0.3)
    torchs = rule_of("torch.optim:AdamW", betas=(0.8, 0.9), weight_decay=0.3)
    mesh, gradient = MeshShape(2, 2), alike(PARAMETERS)
    one, other = (train(Cohort(), mesh, rule, PARAMETERS, gradient).results[0] for rule in (ours, torchs))
    for name, value in one.parameters.items():
        torch.testing.assert_close(other.parameters[name], value, rtol=0, atol=1e-12)
    matrices = PARAMETERS[:2]
    near, far = (
        train(Cohort(), mesh, rule, matrices, gradient).results[0].parameters["a"] - first_value(matrices[0])
        for rule in (
            Muon(lr=0.05, ns_dtype="bfloat16"),
            rule_of("torch.optim:Muon", weight_decay=0.0, auxiliary=AUXILIARY),
        )
    )
    assert (near - far).norm() < 0.05 * near.norm(), "torch iterates in bfloat16"


def test_the_scheduled_rate_is_used() -> None:
    def make(ps: list[torch.nn.Parameter], no_decay: dict[str, float]) -> torch.optim.Optimizer:
        return torch.optim.NAdam(ps, lr=123.0)

    rule = rule_of("torch.optim:NAdam", lr=123.0)
    got = train(Cohort(), MeshShape(1, 2), rule, MATRIX, alike(MATRIX), steps=STEPS, lr=0.01).results[0]
    expected = alive(make, MATRIX[0], alike(MATRIX), lr=0.01)
    torch.testing.assert_close(got.parameters["a"], expected, rtol=0, atol=1e-12)


STATES = [
    rule_of("torch.optim:NAdam"),
    rule_of("pytorch_optimizer:GaLore", group=GALORE, auxiliary=AUXILIARY),
    rule_of("pytorch_optimizer:AdaShift", keep_num=2),
    rule_of("pytorch_optimizer:Lookahead", k=2, base={"name": "torch.optim:Adam"}),
    rule_of("pytorch_optimizer:Kron", balance_prob=0.5),
]


@pytest.mark.parametrize("rule", STATES, ids=lambda rule: rule.title)
@pytest.mark.parametrize("driver", [Coroutines(), Cohort()], ids=lambda driver: driver.name)
def test_a_state_is_plain_data_and_nothing_changes_in_place(rule: TorchOptimizer, driver: Driver) -> None:
    mesh, gradient, seen = MeshShape(2, 2), alike(PARAMETERS), []

    def through_a_file(
        step: int, assignment: Assignment, x: Tensor, grad: Tensor, state: Any, worker: Worker
    ) -> tuple[Tensor, Tensor, Any]:
        file = io.BytesIO()
        torch.save(to_plain((x, grad, state)), file)
        seen.append(((x, grad, state), file.getvalue()))
        fresh = assignment.rule.init(assignment.stack, x, worker)
        back = from_plain((x, grad, fresh), torch.load(io.BytesIO(file.getvalue()), weights_only=True))
        return (x, grad, back[2])

    plain = train(driver, mesh, rule, PARAMETERS, gradient, steps=4)
    saved = train(driver, mesh, rule, PARAMETERS, gradient, steps=4, before=through_a_file)
    for one, other in zip(plain.results, saved.results, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(one.shards, other.shards, strict=True))
    for value, before in seen:
        file = io.BytesIO()
        torch.save(to_plain(value), file)
        assert same(torch.load(io.BytesIO(before)), torch.load(io.BytesIO(file.getvalue())))


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(same(x, y) for x, y in zip(one, other, strict=True))
    return bool(one == other)


def test_random_draws_are_keyed_and_leave_global_streams_alone() -> None:
    import numpy

    rule = rule_of("pytorch_optimizer:Kron", balance_prob=0.5)
    torch.manual_seed(1)
    before = torch.random.get_rng_state(), numpy.random.get_state()[1].tolist()  # noqa: NPY002
    one = train(Cohort(), MeshShape(1, 2), rule, MATRIX, alike(MATRIX)).results[0]
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert numpy.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    torch.manual_seed(2)
    other = train(Cohort(), MeshShape(1, 2), rule, MATRIX, alike(MATRIX)).results[0]
    assert torch.equal(one.parameters["a"], other.parameters["a"])


def test_workers_that_drift_apart_have_memories_of_their_own() -> None:
    """Replicas whose gradients start to differ later, as under a schedule of local steps."""

    def apart(step: int, assignment: Assignment, x: Tensor, grad: Tensor, state: Any, worker: Worker) -> Any:
        factor = worker.ops.each(lambda w: torch.tensor(1.0 + (step >= 2) * (w // 2), dtype=grad.dtype))
        return x, grad * factor.reshape(*factor.shape, *(1,) * (grad.ndim - factor.ndim)), state

    for rule in (rule_of("torch.optim:Adam"), rule_of("pytorch_optimizer:Lamb", gather_parameters=True)):
        runs = [train(driver, MeshShape(2, 2), rule, MATRIX, alike(MATRIX), before=apart) for driver in DRIVERS]
        for w, trained in enumerate(runs[0].results):
            for i, x in enumerate(trained.shards):
                copies = runs[1].results[0].shards[i].expand(2, 2, *x.shape)
                torch.testing.assert_close(copies[w // 2, w % 2], x, rtol=0, atol=1e-12)
        assert not torch.equal(runs[0].results[0].shards[0], runs[0].results[2].shards[0])


DRIVERS: list[Driver] = [Coroutines(), Cohort()]


def test_matrix_products_and_decompositions_are_booked() -> None:
    square = [Parameter("a", (8, 8))]
    soap, adam = (
        train(Coroutines(), MeshShape(1, 1), rule, square, alike(square), steps=2).flops
        for rule in (rule_of("pytorch_optimizer:SOAP"), rule_of("torch.optim:Adam"))
    )
    assert 8 * 64 * 2 < adam < 20 * 64 * 2, "some operations per number"
    assert soap > adam + 10 * 2 * 8**3, "ten products of 8 x 8 matrices, at least"


def test_rules_travel_to_other_processes() -> None:
    rule = rule_of("pytorch_optimizer:Lookahead", k=3, base={"name": "torch.optim:Adam", "betas": [0.5, 0.9]})
    again = pickle.loads(pickle.dumps(rule))
    assert again == rule
    assert hash(again) == hash(rule)
    assert type(again) is type(rule)


def test_what_is_read_back_must_be_a_dict() -> None:
    with pytest.raises(ProgramError, match=r"state\.held: got a value of type list; expected a dict"):
        from_plain(TorchState(0, Loose()), {"steps": 0, "held": []})


def test_a_memory_that_cannot_be_saved_is_refused() -> None:
    class Holds(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            (p,) = self.param_groups[0]["params"]
            self.state[p]["how"] = abs
            super().step()

    made = adapted(Holds)
    assert made is not None
    with pytest.raises(ValueError, match=r"keeps a builtin_function_or_method in '.*how', which cannot be saved"):
        made(lr=0.1)


def test_a_diverged_parameter_is_not_taken_for_a_changed_one() -> None:
    nan = torch.full(PARAMETERS[0].shape, torch.nan, dtype=torch.float64)
    outcome = train(Coroutines(), MeshShape(1, 2), rule_of("torch.optim:Adafactor"), PARAMETERS[:1], lambda *_: nan)
    assert all(trained.parameters[PARAMETERS[0].name].isnan().all() for trained in outcome.results)

"""Muon against a dense judge and torch's own, in all distributed forms."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from pydantic import ValidationError

from simdist.errors import InputError
from simdist.linalg.newton_schulz import COEFFICIENTS
from simdist.optimizers import MeshShape, Muon, stacks
from simdist.optimizers.spectral import update_scale
from tests.optimizers import judges, judges_muon
from tests.optimizers.harness import (
    DRIVERS,
    MESHES,
    Cohort,
    Coroutines,
    Driver,
    Parameter,
    first_value,
    mean_gradient,
    random_gradient,
    train,
)

PARAMETERS = [Parameter("a", (10, 7)), Parameter("b", (10, 7)), Parameter("c", (10, 7)), Parameter("d", (5, 9))]

RULES = [
    Muon(lr=0.1),
    Muon(lr=0.1, convention="sum", nesterov=False, coefficients="polar_express", scale="spectral", weight_decay=0.1),
    Muon(lr=0.1, convention="sum", coefficients="microsoft", scale="rms", mu=0.8),
    Muon(lr=0.1, nesterov=False, ns_steps=7, scale="dmin_dmax"),
]


needs_torch_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")


def expected(rule: Muon, parameter: Parameter, mesh: MeshShape) -> torch.Tensor:
    mean = mean_gradient(random_gradient(PARAMETERS), mesh)
    table = COEFFICIENTS[rule.coefficients]
    m, n = parameter.shape
    return judges.muon(
        first_value(parameter),
        [mean(parameter.name, step) for step in range(5)],
        lr=rule.lr,
        weight_decay=rule.weight_decay,
        scale=update_scale(rule.scale, m, n, 1),
        mu=rule.mu,
        ema=rule.convention == "ema",
        nesterov=rule.nesterov,
        steps=list(table.take(rule.ns_steps)),
        margin=table.margin,
        eps=table.eps,
    )


@pytest.mark.parametrize("driver", DRIVERS, ids=lambda d: d.name)
@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize(("rule", "form"), list(product(RULES, ["owner", "gather"])))
def test_agrees_with_the_dense_judge(driver: Driver, mesh: MeshShape, rule: Muon, form: str) -> None:
    rule = rule.model_copy(update={"form": form})
    outcome = train(driver, mesh, rule, PARAMETERS, random_gradient(PARAMETERS))
    for trained in outcome.results:
        for parameter in PARAMETERS:
            got = trained.parameters[parameter.name]
            torch.testing.assert_close(got, expected(rule, parameter, mesh), rtol=0, atol=1e-10)
            assert torch.equal(got, outcome.results[0].parameters[parameter.name])
    if isinstance(driver, Cohort):
        for x, assignment in zip(outcome.results[0].shards, outcome.results[0].assignments, strict=True):
            stack = assignment.stack
            assert not x[..., len(stack.names) :, :, :].any()
            for shard in range(x.shape[1]):
                assert not x[:, shard, :, max(0, stack.shape[0] - shard * stack.rows) :].any()


def by_torch(parameter: Parameter, **options: object) -> torch.Tensor:
    gradient = random_gradient([parameter])
    x = torch.nn.Parameter(first_value(parameter))
    optimizer = torch.optim.Muon([x], lr=0.1, weight_decay=0.2, momentum=0.9, **options)
    for step in range(5):
        x.grad = gradient(parameter.name, step, 0)
        optimizer.step()
    return x.detach()


def by_us(parameter: Parameter, **options: object) -> torch.Tensor:
    rule = Muon(lr=0.1, weight_decay=0.2, mu=0.9, **options)
    trained = train(Coroutines(), MeshShape(1, 1), rule, [parameter], random_gradient([parameter])).results[0]
    return trained.parameters[parameter.name]


@needs_torch_muon
@pytest.mark.parametrize("shape", [(24, 16), (6, 11)])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize(("adjust", "scale"), [("original", "spectral_clipped"), ("match_rms_adamw", "rms")])
def test_agrees_with_torch_muon(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int], nesterov: bool, adjust: str, scale: str
) -> None:
    """With torch's cast to bfloat16 taken out. What is left: it clamps the norm by 1e-7, where we add 1e-7."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    parameter = Parameter("a", shape)
    theirs = by_torch(parameter, nesterov=nesterov, adjust_lr_fn=adjust, ns_steps=4)
    ours = by_us(parameter, nesterov=nesterov, scale=scale, ns_steps=4)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@needs_torch_muon
def test_agrees_with_torch_muon_in_its_precision() -> None:
    """Both iterate in bfloat16; what is left is the order of the roundings."""
    parameter = Parameter("a", (24, 16))
    theirs = by_torch(parameter, nesterov=True)
    moved = (theirs - first_value(parameter)).norm()
    assert (by_us(parameter, ns_dtype="bfloat16") - theirs).norm() < 0.02 * moved


def test_forms_share_the_work_differently() -> None:
    parameters, mesh = [Parameter(f"p{i}", (8, 8)) for i in range(4)], MeshShape(1, 4)
    gradient = random_gradient(parameters)
    owner, gather = (
        train(Coroutines(), mesh, Muon(lr=0.1, form=form), parameters, gradient) for form in ("owner", "gather")
    )
    assert gather.flops == 4 * owner.flops > 0


def test_zero_gradients_leave_parameters_alone() -> None:
    for form in ("owner", "gather"):
        rule = Muon(lr=0.1, form=form, coefficients="polar_express")
        zero = random_gradient(PARAMETERS, scale=0.0)
        trained = train(Cohort(), MeshShape(2, 2), rule, PARAMETERS, zero).results[0]
        for parameter in PARAMETERS:
            assert torch.equal(trained.parameters[parameter.name], first_value(parameter))


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_extreme_gradients_stay_finite_in_single_precision(scale: float) -> None:
    gradient = random_gradient(PARAMETERS, scale=scale)
    trained = train(Cohort(), MeshShape(1, 4), Muon(lr=0.1), PARAMETERS, gradient, dtype=torch.float32).results[0]
    for parameter in PARAMETERS:
        moved = trained.parameters[parameter.name] - first_value(parameter).float()
        assert moved.isfinite().all()
        assert moved.abs().max() < 1


@pytest.mark.parametrize("driver", DRIVERS, ids=lambda d: d.name)
@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("form", ["owner", "gather"])
def test_the_exact_kernel_takes_the_polar_factor(driver: Driver, mesh: MeshShape, form: str) -> None:
    rule = Muon(lr=0.1, weight_decay=0.1, kernel="svd", form=form, scale="rms", mu=0.8)
    outcome = train(driver, mesh, rule, PARAMETERS, random_gradient(PARAMETERS), steps=3)
    mean = mean_gradient(random_gradient(PARAMETERS), mesh)
    for parameter in PARAMETERS:
        x, scale = first_value(parameter), update_scale("rms", *parameter.shape, 1)
        grads = [mean(parameter.name, step) for step in range(3)]
        for direction in judges_muon.directions(grads, 0.8, ema=True, nesterov=True):
            x = (1 - 0.1 * 0.1) * x - 0.1 * scale * judges_muon.polar(direction)
        for trained in outcome.results:
            torch.testing.assert_close(trained.parameters[parameter.name], x, rtol=0, atol=1e-10)


def test_replicated_is_gather_without_shards() -> None:
    mesh, gradient = MeshShape(4, 1), random_gradient(PARAMETERS)
    replicated, gather = (
        train(Coroutines(), mesh, Muon(lr=0.1, form=form), PARAMETERS, gradient) for form in ("replicated", "gather")
    )
    for parameter in PARAMETERS:
        got, wanted = (o.results[3].parameters[parameter.name] for o in (replicated, gather))
        assert torch.equal(got, wanted)
    assert not [t for t in replicated.transfers if t.purpose == "optimizer"]
    assert replicated.flops == gather.flops > 0
    with pytest.raises(InputError, match="gather to collect them first"):
        stacks(Muon(lr=0.1, form="replicated"), PARAMETERS, MeshShape(2, 2))


@pytest.mark.parametrize("driver", DRIVERS, ids=lambda d: d.name)
@pytest.mark.parametrize("workers", [1, 4])
def test_owners_can_send_parameters_in_place_of_updates(driver: Driver, workers: int) -> None:
    mesh, gradient = MeshShape(workers, 1), random_gradient(PARAMETERS)
    params, updates = (
        train(driver, mesh, Muon(lr=0.1, weight_decay=0.1, returns=returns), PARAMETERS, gradient)
        for returns in ("params", "updates")
    )
    for trained in params.results:
        for parameter in PARAMETERS:
            got, wanted = (r.parameters[parameter.name] for r in (trained, updates.results[0]))
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    sent = params.sent(params=4, factors=2)
    assert sent == 2 * updates.sent(params=4, factors=2)
    assert (sent > 0) == (workers > 1)
    assert {t.wire for t in params.transfers if t.purpose == "optimizer"} <= {"params"}


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValidationError, match="write kernel=newton_schulz"):
        Muon(lr=0.1, kernel="svd", ns_steps=3)
    with pytest.raises(ValidationError, match="expected form=owner"):
        Muon(lr=0.1, form="gather", returns="params")
    with pytest.raises(InputError, match=r"write optimizer\.returns: updates"):
        stacks(Muon(lr=0.1, returns="params"), PARAMETERS, MeshShape(1, 2))

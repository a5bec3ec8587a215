"""Muon against a dense judge and torch's own, in both distributed forms."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from simdist.linalg.newton_schulz import COEFFICIENTS
from simdist.optimizers import MeshShape, Muon
from simdist.optimizers.spectral import update_scale
from tests.optimizers import judges
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


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_agrees_with_torch_muon() -> None:
    """Torch iterates in bfloat16, and so do we here; what is left is the order of its roundings."""
    parameter = Parameter("a", (24, 16))
    gradient = random_gradient([parameter])
    x = torch.nn.Parameter(first_value(parameter))
    optimizer = torch.optim.Muon([x], lr=0.1, weight_decay=0.2, momentum=0.9, nesterov=True)
    for step in range(5):
        x.grad = gradient("a", step, 0)
        optimizer.step()
    rule = Muon(lr=0.1, weight_decay=0.2, mu=0.9, ns_dtype="bfloat16")
    trained = train(Coroutines(), MeshShape(1, 1), rule, [parameter], gradient).results[0]
    ours, theirs = trained.parameters["a"], x.detach()
    moved = (theirs - first_value(parameter)).norm()
    assert (ours - theirs).norm() < 0.02 * moved


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

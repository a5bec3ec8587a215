"""Lion against a dense judge, and the size of its steps."""

from __future__ import annotations

import pytest
import torch

from simdist.optimizers import Lion, MeshShape
from tests.optimizers import judges_others
from tests.optimizers.harness import (
    DRIVERS,
    MESHES,
    Driver,
    Parameter,
    first_value,
    mean_gradient,
    random_gradient,
    train,
)

PARAMETERS = [Parameter("a", (10, 7)), Parameter("b", (10, 7)), Parameter("e", (9, 4), "embedding")]


@pytest.mark.parametrize("driver", DRIVERS, ids=lambda d: d.name)
@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("betas", [(0.9, 0.99), (0.95, 0.8)])
def test_agrees_with_the_dense_judge(driver: Driver, mesh: MeshShape, betas: tuple[float, float]) -> None:
    rule, gradient = Lion(lr=0.1, betas=betas, weight_decay=0.5), random_gradient(PARAMETERS)
    outcome = train(driver, mesh, rule, PARAMETERS, gradient)
    mean = mean_gradient(gradient, mesh)
    for parameter in PARAMETERS:
        expected = judges_others.lion(
            first_value(parameter),
            [mean(parameter.name, step) for step in range(5)],
            lr=0.1,
            weight_decay=0.5 if parameter.role == "matrix" else 0.0,
            b1=betas[0],
            b2=betas[1],
        )
        for trained in outcome.results:
            torch.testing.assert_close(trained.parameters[parameter.name], expected, rtol=0, atol=1e-12)
    assert outcome.sent(factors=4) == 0
    assert outcome.flops > 0


def test_every_number_moves_by_the_learning_rate() -> None:
    """Card 18: |dX + lr wd X| = lr wherever the gradient is not zero, at any scale of the gradients."""
    (parameter, *_) = PARAMETERS
    before, rule = first_value(parameter), Lion(lr=0.1, weight_decay=0.5)
    for scale in (1e-20, 1.0, 1e20):
        gradient = random_gradient(PARAMETERS, scale)
        after = train(DRIVERS[0], MeshShape(1, 4), rule, [parameter], gradient, steps=1).results[0].parameters["a"]
        moved = after - before + 0.1 * 0.5 * before
        joint = mean_gradient(gradient, MeshShape(1, 4))("a", 0)
        torch.testing.assert_close(moved, -0.1 * joint.sign(), rtol=0, atol=1e-14)


def test_the_momentum_moves_after_the_step() -> None:
    """.9 * .5 - .1 * 2 > 0: down twice. A momentum that had moved first (to -.75) would turn the second step round."""
    parameter = Parameter("a", (1, 1))
    grads = [torch.full((1, 1), value, dtype=torch.float64) for value in (1.0, -2.0)]
    rule = Lion(lr=0.1, betas=(0.9, 0.5))
    outcome = train(DRIVERS[0], MeshShape(1, 1), rule, [parameter], lambda name, step, worker: grads[step], steps=2)
    torch.testing.assert_close(outcome.results[0].parameters["a"], first_value(parameter) - 0.2, rtol=0, atol=1e-15)


@pytest.mark.parametrize("betas", [(1.0, 0.9), (0.9, -0.1), (0.9, 1.0)])
def test_useless_betas_are_refused(betas: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="expected a number"):
        Lion(lr=0.1, betas=betas)

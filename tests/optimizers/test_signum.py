"""Signum and signSGD against a dense judge; what the sign of zero is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from simdist.optimizers import MeshShape, Signum
from tests.optimizers import judges_others
from tests.optimizers.harness import (
    DRIVERS,
    MESHES,
    Cohort,
    Driver,
    Parameter,
    first_value,
    mean_gradient,
    random_gradient,
    train,
)

PARAMETERS = [Parameter("a", (10, 7)), Parameter("b", (10, 7)), Parameter("v", (7,), "vector")]


def sparse(name: str, step: int, worker: int) -> torch.Tensor:
    """Gradients of which many numbers are zero on all workers and in all steps."""
    value = random_gradient(PARAMETERS)(name, step, worker)
    return value * (random_gradient(PARAMETERS)(name, 99, 0) > 0)


@pytest.mark.parametrize("driver", DRIVERS, ids=lambda d: d.name)
@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("sign_of_zero", [0, 1])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_agrees_with_the_dense_judge(driver: Driver, mesh: MeshShape, sign_of_zero: int, momentum: float) -> None:
    rule = Signum.model_validate({"lr": 0.1, "momentum": momentum, "weight_decay": 0.5, "sign_of_zero": sign_of_zero})
    outcome = train(driver, mesh, rule, PARAMETERS, sparse)
    mean = mean_gradient(sparse, mesh)
    for parameter in PARAMETERS:
        expected = judges_others.signum(
            first_value(parameter),
            [mean(parameter.name, step) for step in range(5)],
            lr=0.1,
            weight_decay=0.5 if parameter.role == "matrix" else 0.0,
            beta=momentum,
            sign_of_zero=float(sign_of_zero),
        )
        for trained in outcome.results:
            torch.testing.assert_close(trained.parameters[parameter.name], expected, rtol=0, atol=1e-12)
    assert outcome.sent(factors=4) == 0
    assert outcome.flops > 0


def test_zeros_of_padding_stay_where_they_are() -> None:
    """A sign of one for zeros would move the missing rows of the last shards."""
    outcome = train(Cohort(), MeshShape(2, 4), Signum(lr=0.1, sign_of_zero=1), PARAMETERS, sparse)
    (trained,) = outcome.results
    for x, assignment in zip(trained.shards, trained.assignments, strict=True):
        stack, real_rows = assignment.stack, 0
        for shard in range(4):
            real = min(stack.rows, max(0, stack.shape[0] - shard * stack.rows))
            real_rows += real
            beyond = x[:, shard, :, real:]
            assert not beyond.any()
        assert real_rows == stack.shape[0] < 4 * stack.rows


def test_equal_workers_are_one_worker() -> None:
    def same(name: str, step: int, worker: int) -> torch.Tensor:
        return sparse(name, step, 0)

    one, four = (train(DRIVERS[0], mesh, Signum(lr=0.1), PARAMETERS, same) for mesh in (MeshShape(1, 1), MESHES[2]))
    for parameter in PARAMETERS:
        expected = one.results[0].parameters[parameter.name]
        assert all(torch.equal(trained.parameters[parameter.name], expected) for trained in four.results)


@pytest.mark.parametrize("wrong", [{"sign_of_zero": -1}, {"sign_of_zero": 0.5}, {"momentum": 1.0}])
def test_useless_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected a number|Input should be 0 or 1"):
        Signum(lr=0.1, **wrong)

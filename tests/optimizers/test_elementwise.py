"""SGD and AdamW against torch's own, and the same bits on shards."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from simdist.optimizers import SGD, AdamW, MeshShape, Rule
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

PARAMETERS = [
    Parameter("a", (10, 6)),
    Parameter("b", (10, 6)),
    Parameter("e", (9, 4), "embedding"),
    Parameter("v", (7,), "vector"),
    Parameter("u", (7,), "vector"),
]

Torch = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]
RULES: list[tuple[Rule, Torch]] = [
    (AdamW(lr=0.1), lambda p: torch.optim.AdamW(p, lr=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)),
    (SGD(lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1)),
    (SGD(lr=0.1, momentum=0.9), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
    (SGD(lr=0.1, momentum=0.9, nesterov=True), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True)),
]


def by_torch(make: Torch, mesh: MeshShape, parameter: Parameter, decay: float = 0.0) -> torch.Tensor:
    x = torch.nn.Parameter(first_value(parameter))
    optimizer = make([x])
    for group in optimizer.param_groups:
        group["weight_decay"] = decay
    gradient = mean_gradient(random_gradient(PARAMETERS), mesh)
    for step in range(5):
        x.grad = gradient(parameter.name, step)
        optimizer.step()
    return x.detach()


@pytest.mark.parametrize("driver", DRIVERS, ids=lambda d: d.name)
@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize(("rule", "make"), RULES, ids=["adamw", "sgd", "momentum", "nesterov"])
def test_agrees_with_torch(driver: Driver, mesh: MeshShape, rule: Rule, make: Torch) -> None:
    outcome = train(driver, mesh, rule, PARAMETERS, random_gradient(PARAMETERS))
    for parameter in PARAMETERS:
        expected = by_torch(make, mesh, parameter)
        for trained in outcome.results:
            torch.testing.assert_close(trained.parameters[parameter.name], expected, rtol=0, atol=1e-12)
    assert outcome.sent(factors=4) == 0
    assert outcome.flops > 0


def test_adamw_decays_hidden_matrices_only() -> None:
    mesh = MeshShape(1, 4)
    rule = AdamW(lr=0.1, weight_decay=0.5)
    (trained, *_) = train(DRIVERS[0], mesh, rule, PARAMETERS, random_gradient(PARAMETERS)).results
    for parameter in PARAMETERS:
        decay = 0.5 if parameter.role == "matrix" else 0.0
        expected = by_torch(RULES[0][1], mesh, parameter, decay)
        torch.testing.assert_close(trained.parameters[parameter.name], expected, rtol=0, atol=1e-12)


def test_decoupled_decay_of_sgd_uses_the_unscaled_rate() -> None:
    parameter = Parameter("a", (4, 3))
    rule = SGD(lr=0.1, weight_decay=0.5)
    outcome = train(DRIVERS[0], MeshShape(1, 1), rule, [parameter], lambda *_: torch.zeros(4, 3), steps=3)
    torch.testing.assert_close(outcome.results[0].parameters["a"], first_value(parameter) * 0.95**3)


def test_adamw_on_shards_gives_the_bits_of_one_worker() -> None:
    def same(name: str, step: int, worker: int) -> torch.Tensor:
        return random_gradient(PARAMETERS)(name, step, 0)

    whole = train(DRIVERS[0], MeshShape(1, 1), AdamW(lr=0.1), PARAMETERS, same).results[0].parameters
    cut = train(DRIVERS[0], MeshShape(1, 4), AdamW(lr=0.1), PARAMETERS, same).results[0].parameters
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


@pytest.mark.parametrize("settings", [{"betas": (1.0, 0.9)}, {"eps": 0.0}, {"betas": (0.9, -0.1)}])
def test_adamw_refuses_useless_settings(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected a number"):
        AdamW(lr=0.1, **settings)


def test_nesterov_without_momentum_is_refused() -> None:
    with pytest.raises(ValueError, match=r"momentum=0\.9"):
        SGD(lr=0.1, nesterov=True)

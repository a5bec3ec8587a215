"""The judge of torch optimizers as rules: the class itself, alive over all steps, on each whole parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from simdist.optimizers import AdamW, MeshShape, Rule
from simdist.optimizers.torch_optimizer import TorchOptimizer
from simdist.optimizers.torch_stepping import has_modes, isolated
from simdist.program.random import stream
from tests.optimizers.harness import Cohort, Driver, Gradient, Outcome, Parameter, first_value, random_gradient, train

STEPS = 6
#: no number of shards but one divides seven rows
PARAMETERS = [Parameter("a", (7, 4)), Parameter("b", (7, 4)), Parameter("v", (7,), "vector")]

#: ``make(parameters, weight decay or not)``
Make = Callable[[list[torch.nn.Parameter], dict[str, float]], torch.optim.Optimizer]


def alike(parameters: Sequence[Parameter]) -> Gradient:
    """Gradients that all workers share: their mean has the same bits on every mesh of two, four or eight."""
    own = random_gradient(parameters)
    return lambda name, step, worker: own(name, step, 0)


def lives(
    make: Make, parameter: Parameter, gradient: Gradient, steps: int = STEPS, lr: float | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Train one parameter with the class as torch users do (random draws as in a run with seed 0).

    Yields it after every step, as it is trained and as it is evaluated: after ``eval()``, for a class with modes, which
    then goes on after ``train()``.
    """
    p = torch.nn.Parameter(first_value(parameter))
    with isolated(stream(0, f"torch/{parameter.name}", step=0).initial_seed(), p.device):
        # as everywhere here, weight decay is for hidden matrices
        optimizer: Any = make([p], {} if parameter.role == "matrix" else {"weight_decay": 0.0})
    modes = has_modes(type(optimizer))
    for step in range(steps):
        if modes:
            optimizer.train()
        p.grad = gradient(parameter.name, step, 0).clone()
        if lr is not None:
            optimizer.param_groups[0]["lr"] = lr
        with isolated(stream(0, f"torch/{parameter.name}", step=step).initial_seed(), p.device):
            optimizer.step()
        trained = p.detach().clone()
        if modes:
            optimizer.eval()
        yield trained, p.detach().clone()


def alive(make: Make, parameter: Parameter, gradient: Gradient, steps: int = STEPS, lr: float | None = None) -> Tensor:
    """Return one parameter after the last step, as it is trained."""
    *_, (trained, _) = lives(make, parameter, gradient, steps, lr)
    return trained


def agrees(
    rule: TorchOptimizer, make: Make, mesh: MeshShape, driver: Driver, parameters: Sequence[Parameter] = PARAMETERS
) -> Outcome:
    """Assert that a rule trains as the class does, on every worker, and that padding stays zero."""
    gradient = alike(parameters)
    outcome = train(driver, mesh, rule, parameters, gradient, steps=STEPS)
    for parameter in parameters:
        chosen: Rule = rule.rule_for(parameter.role)
        if isinstance(chosen, AdamW):
            continue
        expected = alive(make, parameter, gradient)
        assert (expected - first_value(parameter)).abs().max() > 1e-8, "the judge does not move"
        for trained in outcome.results:
            got = trained.parameters[parameter.name]
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
    if isinstance(driver, Cohort):
        for x, assignment in zip(outcome.results[0].shards, outcome.results[0].assignments, strict=True):
            stack = assignment.stack
            for shard in range(x.shape[1]):
                real = max(0, stack.shape[0] - shard * stack.rows)
                assert not x[:, shard].narrow(2, real, stack.rows - real).any() if real < stack.rows else True
    return outcome

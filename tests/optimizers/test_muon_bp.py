"""MuonBP: its judge, its traffic step by step, and its limits (card 5)."""

from __future__ import annotations

from math import ceil

import pytest
import torch

from simdist.linalg.newton_schulz import COEFFICIENTS
from simdist.optimizers import MeshShape, Muon, MuonBP
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


def iterated(m: torch.Tensor) -> torch.Tensor:
    table = COEFFICIENTS["jordan"]
    return judges.polar_polynomial(m, list(table.take(5)), table.margin, table.eps)


@pytest.mark.parametrize("driver", DRIVERS, ids=lambda d: d.name)
@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize(
    "rule",
    [
        MuonBP(lr=0.1, block_lr=0.03, weight_decay=0.2, mu=0.8, period=2),
        MuonBP(lr=0.1, weight_decay=0.2, mu=0.8, period=3, kernel="svd", scale="spectral", form="gather"),
    ],
    ids=["iterated", "svd"],
)
def test_agrees_with_the_dense_judge(driver: Driver, mesh: MeshShape, rule: MuonBP) -> None:
    outcome = train(driver, mesh, rule, PARAMETERS, random_gradient(PARAMETERS))
    mean = mean_gradient(random_gradient(PARAMETERS), mesh)
    for parameter in PARAMETERS:
        expected = judges_muon.muon_bp(
            first_value(parameter),
            [mean(parameter.name, step) for step in range(5)],
            iterated if rule.kernel == "newton_schulz" else judges_muon.polar,
            lr=0.1,
            block_lr=rule.block_lr or 0.1,
            weight_decay=0.2,
            mu=0.8,
            period=rule.period,
            rows=ceil(parameter.shape[0] / mesh.shards),
            scale=lambda m, n: update_scale(rule.scale, m, n, 1),
        )
        for trained in outcome.results:
            torch.testing.assert_close(trained.parameters[parameter.name], expected, rtol=0, atol=1e-10)
    if isinstance(driver, Cohort):
        for x, assignment in zip(outcome.results[0].shards, outcome.results[0].assignments, strict=True):
            assert not x[..., len(assignment.stack.names) :, :, :].any()
            for shard in range(x.shape[1]):
                real = max(0, assignment.stack.shape[0] - shard * assignment.stack.rows)
                assert not x[:, shard, :, real:].any()


@pytest.mark.parametrize("form", ["owner", "gather"])
@pytest.mark.parametrize("mesh", [MeshShape(1, 4), MeshShape(2, 4), MeshShape(4, 1)], ids=str)
def test_sends_what_muon_sends_in_every_period_th_step_and_nothing_between(mesh: MeshShape, form: str) -> None:
    def sent(rule: Muon | MuonBP, steps: int) -> float:
        return train(Cohort(), mesh, rule, PARAMETERS, random_gradient(PARAMETERS), steps=steps).sent(factors=2)

    one = sent(Muon(lr=0.1, form=form), 1)
    assert (one > 0) == (form == "owner" or mesh.shards > 1)
    got = [sent(MuonBP(lr=0.1, form=form, period=3), steps) for steps in range(1, 8)]
    assert got == [one, one, one, 2 * one, 2 * one, 2 * one, 3 * one]


@pytest.mark.parametrize("mesh", [MeshShape(1, 4), MeshShape(2, 2)], ids=str)
def test_period_one_is_muon(mesh: MeshShape) -> None:
    gradient = random_gradient(PARAMETERS)
    same = {"lr": 0.1, "convention": "sum", "nesterov": False, "scale": "rms"}
    one, other = (
        train(Coroutines(), mesh, rule, PARAMETERS, gradient)
        for rule in (MuonBP(**same, period=1, block_lr=5.0), Muon(**same))
    )
    for parameter in PARAMETERS:
        got, wanted = (o.results[0].parameters[parameter.name] for o in (one, other))
        assert torch.equal(got, wanted)


def test_block_steps_do_less_work() -> None:
    """A 12 x 12 matrix on four shards: three rows each, so 4 s^2 l + 2 s^3 with s = 3 in place of s = 12."""
    parameters = [Parameter(f"p{i}", (12, 12)) for i in range(4)]
    mesh, gradient = MeshShape(1, 4), random_gradient(parameters)
    one, two = (train(Coroutines(), mesh, MuonBP(lr=0.1), parameters, gradient, steps=steps).flops for steps in (1, 2))
    assert one == 5 * 6 * 12**3
    assert two - one == 4 * 5 * (4 * 9 * 12 + 2 * 27)


def test_the_schedule_scales_both_learning_rates() -> None:
    """A run at half the rate of ``lr`` is one with both rates halved."""
    gradient = random_gradient(PARAMETERS)
    half = MuonBP(lr=0.05, block_lr=0.02, period=2)
    scheduled, constant = (
        train(Coroutines(), MeshShape(1, 2), rule, PARAMETERS, gradient, lr=0.05).results[0].parameters
        for rule in (MuonBP(lr=0.1, block_lr=0.04, period=2), half)
    )
    for name, value in scheduled.items():
        torch.testing.assert_close(value, constant[name], rtol=0, atol=1e-12)

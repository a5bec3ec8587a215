"""Buffers of compressed replicas (card 3, care 1): exact mean, growing deviations, two remedies; bfloat16 states."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from simdist.optimizers import Dion, MeshShape, OrthDion
from simdist.optimizers.low_rank import LowRank
from tests.optimizers.harness import (
    Cohort,
    Coroutines,
    Parameter,
    Trained,
    mean_gradient,
    random_gradient,
    train,
)
from tests.optimizers.test_bytes import FACTORS, one_step, ring, sent

PARAMETERS = [Parameter("a", (8, 6))]
MESH = MeshShape(3, 1)
MU = 0.9
REMEDIES: dict[str, dict[str, Any]] = {
    "none": {},
    "averaged": {"average_buffers_every": 30},
    "own": {"cleared": "own"},
}


def dion(remedy: str) -> Dion:
    return Dion(lr=0.01, rank=2, mu=MU, **REMEDIES[remedy])


@cache
def trained(remedy: str, steps: int) -> Trained:
    result: Trained = train(Cohort(), MESH, dion(remedy), PARAMETERS, random_gradient(PARAMETERS), steps).results[0]
    return result


@cache
def judge(steps: int) -> Trained:
    mean, alone = mean_gradient(random_gradient(PARAMETERS), MESH), MeshShape(1, 1)
    result: Trained = train(Cohort(), alone, dion("none"), PARAMETERS, lambda n, s, w: mean(n, s), steps).results[0]
    return result


def drift(buffers: Tensor) -> float:
    mean = buffers.mean(dim=0)
    return float((buffers - mean).square().sum(dim=(-2, -1)).mean().sqrt() / mean.norm())


@pytest.mark.parametrize("remedy", REMEDIES)
def test_compressed_replicas_are_one_worker_on_averaged_gradients(remedy: str) -> None:
    """Card 3, test 2: X and the mean buffer to 1e-8 after 400 steps."""
    many, one = trained(remedy, 400), judge(400)
    assert dion(remedy).syncs_replicas((8, 6), MESH)
    torch.testing.assert_close(many.parameters["a"], one.parameters["a"], rtol=0, atol=1e-8)
    mean = many.states[0].buffer.mean(dim=0)[0, 0]
    torch.testing.assert_close(mean, one.states[0].buffer[0, 0, 0], rtol=0, atol=1e-8)


def test_deviations_grow_without_a_remedy_and_stay_bounded_with_one() -> None:
    """Absolute deviations: a random walk, whose square grows with the steps."""

    def deviation(remedy: str, steps: int) -> float:
        buffers = trained(remedy, steps).states[0].buffer[:, 0, 0]
        return float((buffers - buffers.mean(dim=0)).norm())

    assert deviation("none", 400) > 1.5 * deviation("none", 100)
    assert deviation("averaged", 30) == 0
    # ten steps after the last average
    assert 0 < deviation("averaged", 400) < 0.4 * deviation("none", 400)
    # its own projections cannot reach what lies outside the tracked subspace, but shrink what is in it
    assert deviation("own", 400) < 0.8 * deviation("none", 400)
    assert deviation("own", 400) < 1.5 * deviation("own", 100)


def test_the_noted_drift_is_that_of_the_buffers() -> None:
    steps = 5
    outcome = train(Coroutines(), MESH, dion("none"), PARAMETERS, random_gradient(PARAMETERS), steps, measure=True)
    buffers = torch.stack([result.states[0].buffer[0] for result in outcome.results])
    assert float(outcome.observations[-1]["state_drift"]) == pytest.approx(drift(buffers), rel=1e-9)
    assert float(outcome.observations[-1]["state_norm"]) == pytest.approx(float(buffers.mean(dim=0).norm()), rel=1e-9)
    assert float(outcome.observations[0]["state_drift"]) > 0


@pytest.mark.parametrize("mesh", [MeshShape(3, 1), MeshShape(2, 4)], ids=str)
def test_averaging_is_counted_when_it_happens(mesh: MeshShape) -> None:
    rule, plain = OrthDion(lr=0.1, rank=2, average_buffers_every=2), OrthDion(lr=0.1, rank=2)
    parameters = [Parameter("a", (10, 7))]
    rows, c = -(-10 // mesh.shards), mesh.owners
    for steps, times in ((1, 0), (2, 1), (5, 2)):
        with_, without = (
            train(Coroutines(), mesh, r, parameters, random_gradient(parameters), steps) for r in (rule, plain)
        )
        extra = 2 * ring(mesh.replicas) * c * rows * 7 * FACTORS
        assert sent(with_) - sent(without) == pytest.approx(times * extra)
        assert sum(t.tensor.endswith(":buffer") for t in with_.transfers) == times


def test_replicas_with_equal_buffers_average_nothing() -> None:
    """At rank 5 factors are larger than the gradient, so that replicas exchange gradients."""
    for mesh in (MeshShape(1, 4), MeshShape(2, 2)):
        outcome = one_step(OrthDion(lr=0.1, rank=5, average_buffers_every=1, cleared="own"), mesh, (10, 7), 1)
        assert not any(t.tensor.endswith(":buffer") for t in outcome.transfers)
        plain = one_step(OrthDion(lr=0.1, rank=5), mesh, (10, 7), 1)
        assert sent(outcome) == sent(plain)
        torch.testing.assert_close(
            outcome.results[0].parameters["p0"], plain.results[0].parameters["p0"], rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("rule", [Dion(lr=0.05, rank=2), OrthDion(lr=0.05, rank=2, beta=0.9)], ids=lambda r: r.name)
def test_bfloat16_states_are_stored_so_and_stay_near(rule: LowRank) -> None:
    coarse = rule.model_copy(update={"state_dtype": "bfloat16"})
    parameters = [Parameter("a", (10, 7))]
    for mesh in (MeshShape(1, 4), MeshShape(2, 2)):
        exact, rough = (train(Coroutines(), mesh, r, parameters, random_gradient(parameters)) for r in (rule, coarse))
        for result in rough.results:
            assert result.states[0].buffer.dtype == result.states[0].basis.dtype == torch.bfloat16
            assert result.parameters["a"].dtype == torch.float64
            assert torch.equal(result.parameters["a"], rough.results[0].parameters["a"])
        one, two = (outcome.results[0].parameters["a"] for outcome in (exact, rough))
        assert 1e-6 < float((one - two).norm()) < 0.05
        assert [(t.op, t.numbers) for t in exact.transfers] == [(t.op, t.numbers) for t in rough.transfers]


def test_a_bfloat16_state_is_the_rounded_one() -> None:
    """One step from a V that bfloat16 holds: what is stored is the full step's buffer and basis, rounded once."""

    class Rounded(OrthDion):
        def start(self, gaussian: Tensor) -> Tensor:
            return super().start(gaussian).bfloat16().double()

    parameters = [Parameter("a", (10, 7))]
    exact, rough = (
        train(Coroutines(), MeshShape(1, 1), rule, parameters, random_gradient(parameters), 1).results[0].states[0]
        for rule in (Rounded(lr=0.05, rank=3), Rounded(lr=0.05, rank=3, state_dtype="bfloat16"))
    )
    assert torch.equal(rough.buffer, exact.buffer.bfloat16())
    assert torch.equal(rough.basis, exact.basis.bfloat16())
    assert not torch.equal(rough.buffer.double(), exact.buffer)

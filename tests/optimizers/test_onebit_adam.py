"""1-bit Adam against a dense judge and AdamW: what is sent, what is remembered, and what stands still."""

from __future__ import annotations

from itertools import pairwise
from math import ceil
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from simdist.codecs import codecs
from simdist.optimizers import AdamW, Assignment, MeshShape, OneBitAdam
from simdist.program import Worker
from tests.optimizers import judges_compressed as judges
from tests.optimizers.harness import (
    DRIVERS,
    MESHES,
    Cohort,
    Coroutines,
    Driver,
    Gradient,
    Parameter,
    first_value,
    random_gradient,
    train,
)
from tests.optimizers.law_runs import EVERYWHERE

PARAMETERS = [
    Parameter("a", (10, 7)),
    Parameter("b", (10, 7)),
    Parameter("e", (9, 4), "embedding"),
    Parameter("v", (7,), "vector"),
    Parameter("w", (7,), "vector"),
]
GRADIENT = random_gradient(PARAMETERS)
STEPS = 6
REPLICATED = [mesh for mesh in MESHES if mesh.replicas > 1]


def judged(rule: OneBitAdam, parameter: Parameter, mesh: MeshShape, gradient: Gradient = GRADIENT) -> Tensor:
    return judges.onebit_adam(
        first_value(parameter),
        [judges.per_replica(gradient, parameter.name, step, mesh) for step in range(STEPS)],
        judges.signs if rule.codec == "sign" else lambda x: x,
        lr=rule.lr,
        weight_decay=rule.weight_decay if parameter.role == "matrix" else 0.0,
        betas=rule.betas,
        eps=rule.eps,
        warmup=rule.warmup_steps,
        shards=mesh.shards,
    )


RULES = [
    OneBitAdam(lr=0.1, warmup_steps=2),
    OneBitAdam(lr=0.1, warmup_steps=1, weight_decay=0.2, betas=(0.8, 0.9)),
    OneBitAdam(lr=0.1, warmup_steps=3, codec="fp64", eps=1e-3),
]


@pytest.mark.parametrize(("driver", "mesh"), EVERYWHERE, ids=str)
@pytest.mark.parametrize("rule", RULES, ids=lambda r: f"{r.codec} after {r.warmup_steps}")
def test_agrees_with_the_dense_judge(driver: Driver, mesh: MeshShape, rule: OneBitAdam) -> None:
    for trained in train(driver, mesh, rule, PARAMETERS, GRADIENT, steps=STEPS).results:
        for parameter in PARAMETERS:
            expected = judged(rule, parameter, mesh)
            torch.testing.assert_close(trained.parameters[parameter.name], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("driver", "mesh"), EVERYWHERE, ids=str)
def test_a_warm_up_as_long_as_the_run_is_adamw_to_the_bit(driver: Driver, mesh: MeshShape) -> None:
    long = OneBitAdam(lr=0.1, warmup_steps=STEPS, weight_decay=0.1)
    adamw = AdamW(lr=0.1, weight_decay=0.1)
    one, other = (train(driver, mesh, rule, PARAMETERS, GRADIENT, steps=STEPS) for rule in (long, adamw))
    for mine, theirs in zip(one.results, other.results, strict=True):
        assert all(torch.equal(mine.parameters[p.name], theirs.parameters[p.name]) for p in PARAMETERS)


def watched(mesh: MeshShape, rule: OneBitAdam, gradient: Gradient = GRADIENT) -> list[tuple[Tensor, Any]]:
    """(gradient, state) before every step, and the last state, of one matrix on a cohort."""
    seen: list[tuple[Tensor, Any]] = []

    def before(
        step: int, assignment: Assignment, x: Tensor, grad: Tensor, state: Any, worker: Worker
    ) -> tuple[Tensor, Tensor, Any]:
        seen.append((grad, state))
        return x, grad, state

    outcome = train(Cohort(), mesh, rule, PARAMETERS[:1], gradient, steps=STEPS, before=before)
    return [*seen, (torch.zeros(()), outcome.results[0].states[0])]


@pytest.mark.parametrize("mesh", REPLICATED, ids=str)
def test_what_is_left_out_is_sent_later(mesh: MeshShape) -> None:
    """Momenta that were used, with both kinds of error still owed, sum to the mean of those that should have been."""
    rule = OneBitAdam(lr=0.1, warmup_steps=2)
    seen = watched(mesh, rule)
    beta, wanted, used = rule.betas[0], torch.zeros(()), torch.zeros(())
    for (grad, state), (_, after) in pairwise(seen[2:]):
        wanted = wanted + (beta * state.mean + (1 - beta) * grad).mean(0)
        used = used + after.mean[0]
    last = seen[-1][1]
    assert last.error.any()
    assert last.sum_error.any()
    # owners' slices of this shard's rows, in order; fewer numbers at the end
    owed = last.sum_error.movedim(0, -2).flatten(-2)[..., : used[0].numel() // used.shape[1]]
    owed = owed.unflatten(-1, used.shape[-2:])
    torch.testing.assert_close(used + owed + last.error.mean(0), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mesh", REPLICATED, ids=str)
def test_replicas_differ_in_their_errors_only(mesh: MeshShape) -> None:
    last = watched(mesh, OneBitAdam(lr=0.1, warmup_steps=2))[-1][1]
    assert not torch.equal(last.error[0], last.error[1])
    for shared in (last.mean, last.square):
        assert all(torch.equal(one, shared[0]) for one in shared)


def length(parameter: Parameter, mesh: MeshShape) -> int:
    """Numbers of one worker, padding included."""
    return ceil(parameter.shape[0] / mesh.shards) * torch.Size(parameter.shape[1:]).numel()


@pytest.mark.parametrize("driver", DRIVERS, ids=lambda d: d.name)
@pytest.mark.parametrize("mesh", [*MESHES, MeshShape(3, 1)], ids=str)
def test_bytes_are_those_of_a_dense_mean_then_of_signs(driver: Driver, mesh: MeshShape) -> None:
    n, counts = mesh.replicas, [length(p, mesh) for p in PARAMETERS]
    warm, cold = (
        train(driver, mesh, OneBitAdam(lr=0.1, warmup_steps=2), PARAMETERS, GRADIENT, steps=steps).sent(
            grads=4, packed=1
        )
        for steps in (2, 3)
    )
    assert warm == pytest.approx(2 * sum(2 * (n - 1) / n * 4 * d for d in counts))
    slices = [ceil(d / n) for d in counts]
    assert cold - warm == pytest.approx(sum(2 * (n - 1) * (ceil(d / 8) + 4) for d in slices))


def test_labels_tell_the_two_stages_and_the_two_ways() -> None:
    outcome = train(
        Coroutines(), MeshShape(2, 2), OneBitAdam(lr=0.1, warmup_steps=1), PARAMETERS[:1], GRADIENT, steps=2
    )
    mine = [(t.op, t.axis, t.tensor, t.wire) for t in outcome.transfers if t.purpose == "optimizer"]
    assert mine == [
        ("Reduce", "replicas", "a:gradient", "grads"),
        ("AllToAll", "replicas", "a:momentum", "packed"),
        ("AllGather", "replicas", "a:momentum:sum", "packed"),
    ]


def late(name: str, step: int, worker: int) -> Tensor:
    """Rows 2 to 5 have no gradient before step 4."""
    gradient = GRADIENT(name, step, worker)
    return torch.cat([gradient[:2], gradient[2:6] * (step >= 4), gradient[6:]])


@pytest.mark.parametrize("mesh", [MeshShape(1, 1), MeshShape(4, 1), MeshShape(2, 2)], ids=str)
def test_numbers_without_gradient_in_the_warm_up_stand_still(mesh: MeshShape) -> None:
    """And the others are where the judge brings them: nothing is remembered for those that stand."""
    rule = OneBitAdam(lr=0.1, warmup_steps=2, eps=1e-12)
    (trained,) = train(Cohort(), mesh, rule, PARAMETERS[:1], late, steps=STEPS).results
    got, start = trained.parameters["a"], first_value(PARAMETERS[0])
    assert torch.equal(got[2:6], start[2:6])
    assert float((got - start).abs().max()) < 2 * STEPS * rule.lr
    torch.testing.assert_close(got, judged(rule, PARAMETERS[0], mesh, late), rtol=0, atol=1e-10)


@pytest.mark.parametrize("codec", [name for name in codecs.names() if name != "qsdp"])
def test_any_codec_may_carry_the_momentum(codec: str) -> None:
    """Not QSDP's lattice, which makes numbers of zeros (see its docstring)."""
    rule = OneBitAdam(lr=0.01, warmup_steps=2, codec=codec)
    one, other = (train(driver, MeshShape(2, 2), rule, PARAMETERS, GRADIENT, steps=4) for driver in DRIVERS)
    for trained in one.results:
        for parameter in PARAMETERS:
            value = trained.parameters[parameter.name]
            assert value.isfinite().all()
            torch.testing.assert_close(value, other.results[0].parameters[parameter.name], rtol=0, atol=1e-10)


def test_diagnostics_note_the_errors() -> None:
    rule, mesh = OneBitAdam(lr=0.1, warmup_steps=1), MeshShape(2, 2)
    outcome = train(Cohort(), mesh, rule, PARAMETERS, GRADIENT, steps=2, measure=True)
    first, second = outcome.observations[: len(PARAMETERS)], outcome.observations[len(PARAMETERS) :]
    assert [row["matrix"] for row in second] == [p.name for p in PARAMETERS]
    assert all(float(row["state_norm"]) == 0 for row in first)
    for i, parameter in enumerate(PARAMETERS[:2]):
        # replicas in front, then shards, of which each has its rows
        errors = outcome.results[0].states[0].error[..., i, :, :].flatten(1, 2)
        mean = errors.mean(0)
        assert float(second[i]["state_norm"]) == pytest.approx(float(mean.norm()), rel=1e-12), parameter.name
        spread = (errors - mean).square().sum((-2, -1)).mean().sqrt() / mean.norm()
        assert float(second[i]["state_drift"]) == pytest.approx(float(spread), rel=1e-12)


@pytest.mark.parametrize("given", [{}, {"warmup_steps": 0}, {"warmup_steps": 3, "codec": "sgin"}])
def test_bad_settings_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises((ValidationError, ValueError), match=r"warmup_steps|sgin"):
        OneBitAdam(lr=0.1, **given)

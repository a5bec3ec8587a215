"""NorMuon: its judges in both variants, what normalisation means, and its traffic (card 6)."""

from __future__ import annotations

from math import ceil

import pytest
import torch
from pydantic import ValidationError

from simdist.linalg.newton_schulz import COEFFICIENTS
from simdist.optimizers import MeshShape, Muon, NorMuon
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
    table = COEFFICIENTS["polar_express"]
    return judges.polar_polynomial(m, list(table.take(5)), table.margin, table.eps)


@pytest.mark.parametrize("driver", DRIVERS, ids=lambda d: d.name)
@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("form", ["owner", "gather"])
@pytest.mark.parametrize("rescale", ["exact", "shard"])
def test_agrees_with_the_dense_judge(driver: Driver, mesh: MeshShape, form: str, rescale: str) -> None:
    rule = NorMuon(lr=0.1, weight_decay=0.2, mu=0.8, beta2=0.7, form=form, rescale=rescale)
    outcome = train(driver, mesh, rule, PARAMETERS, random_gradient(PARAMETERS))
    mean = mean_gradient(random_gradient(PARAMETERS), mesh)
    for parameter in PARAMETERS:
        m, n = parameter.shape
        expected = judges_muon.normuon(
            first_value(parameter),
            [mean(parameter.name, step) for step in range(5)],
            iterated,
            lr=0.1,
            weight_decay=0.2,
            mu=0.8,
            beta2=0.7,
            scale=update_scale("spectral", m, n, 1),
            rows=m if rescale == "exact" else ceil(m / mesh.shards),
        )
        for trained in outcome.results:
            got = trained.parameters[parameter.name]
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
            assert torch.equal(got, outcome.results[0].parameters[parameter.name])
    if isinstance(driver, Cohort):
        for x, assignment in zip(outcome.results[0].shards, outcome.results[0].assignments, strict=True):
            assert not x[..., len(assignment.stack.names) :, :, :].any()
            for shard in range(x.shape[1]):
                real = max(0, assignment.stack.shape[0] - shard * assignment.stack.rows)
                assert not x[:, shard, :, real:].any()


@pytest.mark.parametrize("driver", DRIVERS, ids=lambda d: d.name)
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_the_paper_variant_agrees_with_its_own_judge(driver: Driver, mesh: MeshShape) -> None:
    """The paper's momentum is a mean, the rule's a sum: the polar factor is the same."""
    rule = NorMuon(lr=0.1, weight_decay=0.2, mu=0.8, beta2=0.7, variant="paper", scale="rms", kernel="svd")
    outcome = train(driver, mesh, rule, PARAMETERS, random_gradient(PARAMETERS), steps=3)
    mean = mean_gradient(random_gradient(PARAMETERS), mesh)
    for parameter in PARAMETERS:
        expected = judges_muon.normuon_paper(
            first_value(parameter),
            [mean(parameter.name, step) for step in range(3)],
            judges_muon.polar,
            lr=0.1,
            weight_decay=0.2,
            mu=0.8,
            beta2=0.7,
        )
        for trained in outcome.results:
            torch.testing.assert_close(trained.parameters[parameter.name], expected, rtol=0, atol=1e-10)


def test_variants_are_one_where_the_kernel_is_exact() -> None:
    """||O||_F is sqrt(min(m, n)) then; Newton-Schulz only comes near it."""
    gradient, apart = random_gradient(PARAMETERS), {}
    for kernel in ("svd", "newton_schulz"):
        code, paper = (
            train(Coroutines(), MeshShape(1, 2), NorMuon(lr=0.1, kernel=kernel, variant=variant), PARAMETERS, gradient)
            for variant in ("code", "paper")
        )
        apart[kernel] = max(
            float((code.results[0].parameters[p.name] - paper.results[0].parameters[p.name]).abs().max())
            for p in PARAMETERS
        )
    assert apart["svd"] < 1e-12
    assert apart["newton_schulz"] > 1e-3


def first_updates(rule: Muon | NorMuon, mesh: MeshShape) -> dict[str, torch.Tensor]:
    trained = train(Coroutines(), mesh, rule, PARAMETERS, random_gradient(PARAMETERS), steps=1).results[0]
    return {p.name: first_value(p) - trained.parameters[p.name] for p in PARAMETERS}


@pytest.mark.parametrize("mesh", [MeshShape(1, 1), MeshShape(1, 4)], ids=str)
def test_the_first_step_levels_the_rows_and_keeps_the_norm(mesh: MeshShape) -> None:
    """v is proportional to s in the first step: rows get equal norms, and together the norm that they had."""
    same = {"lr": 0.1, "convention": "sum", "nesterov": False, "coefficients": "polar_express", "scale": "spectral"}
    muon, normuon = first_updates(Muon(**same), mesh), first_updates(NorMuon(**same), mesh)
    for name, update in normuon.items():
        rows = update.norm(dim=1)
        torch.testing.assert_close(rows, rows.mean().expand_as(rows), rtol=1e-6, atol=0)
        assert float(update.norm()) == pytest.approx(float(muon[name].norm()), rel=1e-12)
        assert float(muon[name].norm(dim=1).max() / muon[name].norm(dim=1).min()) > 1.01


def test_rescaling_by_shards_depends_on_their_number_and_exact_does_not() -> None:
    def run(rescale: str, mesh: MeshShape) -> torch.Tensor:
        rule = NorMuon(lr=0.1, rescale=rescale)
        gradient = random_gradient(PARAMETERS)
        # the same gradient on every worker, so that meshes see the same means
        outcome = train(Coroutines(), mesh, rule, PARAMETERS, lambda name, step, _: gradient(name, step, 0))
        return outcome.results[0].parameters["a"]

    one = run("exact", MeshShape(1, 1))
    torch.testing.assert_close(run("shard", MeshShape(1, 1)), one, rtol=0, atol=1e-12)
    torch.testing.assert_close(run("exact", MeshShape(1, 4)), one, rtol=0, atol=1e-12)
    assert float((run("shard", MeshShape(1, 4)) - one).abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("variant", "rescale", "numbers"), [("code", "exact", 2), ("paper", "exact", 1), ("code", "shard", 0)]
)
@pytest.mark.parametrize("mesh", [MeshShape(1, 4), MeshShape(2, 4), MeshShape(4, 1)], ids=str)
def test_sends_what_muon_sends_and_the_norms(mesh: MeshShape, variant: str, rescale: str, numbers: int) -> None:
    width = {"factors": 2, "statistics": 4}
    rule = NorMuon(lr=0.1, variant=variant, rescale=rescale)
    got, muon = (
        train(Cohort(), mesh, r, PARAMETERS, random_gradient(PARAMETERS), steps=1).sent(**width)
        for r in (rule, Muon(lr=0.1))
    )
    matrices = 4 + 4  # three of one shape and one of another, with dummies for four owners
    assert got - muon == 2 * (mesh.shards - 1) / mesh.shards * numbers * 4 * matrices


def test_the_paper_has_no_norm_of_a_shard() -> None:
    with pytest.raises(ValidationError, match="expected rescale=exact, or variant=code"):
        NorMuon(lr=0.1, variant="paper", rescale="shard")


def test_zero_gradients_leave_parameters_alone() -> None:
    zero = random_gradient(PARAMETERS, scale=0.0)
    for variant in ("code", "paper"):
        trained = train(Cohort(), MeshShape(2, 2), NorMuon(lr=0.1, variant=variant), PARAMETERS, zero).results[0]
        for parameter in PARAMETERS:
            assert torch.equal(trained.parameters[parameter.name], first_value(parameter))

"""The family of right factors against dense judges on every mesh, its laws (card 1), and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from simdist.optimizers import MeshShape, Muon, OrthDion, left_factor
from simdist.optimizers.right_factor import RIGHT_FACTORS
from simdist.optimizers.spectral import update_scale
from simdist.program.random import normal
from tests.optimizers import judges
from tests.optimizers.harness import (
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

PARAMETERS = [Parameter("a", (10, 7)), Parameter("b", (10, 7)), Parameter("d", (5, 9))]
A2A: dict[str, Any] = {"orthonormalization": "all_to_all"}
FAMILY: dict[str, dict[str, Any]] = {
    "polar": {"right_factor": "polar"},
    "polar one pass": {"right_factor": "polar", "gram_passes": 1},
    "interp": {"right_factor": "interp", "tau": 0.4, "beta": 0.9},
    "interp to polar": {"right_factor": "interp", "tau": 1.0},
    "block": {"right_factor": "block_qr", "block": 2},
    "block, narrower last": {"right_factor": "block_qr", "block": 3, "gram_passes": 1},
    "block raw": {"right_factor": "block_qr", "block": 2, "signs": "raw"},
    "svd": {"right_factor": "exact_svd", "beta": 0.8},
    "svd by owners": {"right_factor": "exact_svd", "error_feedback": "code", "beta": 0.3, **A2A},
    "qr_pos auto": {"gram_passes": "auto"},
    "qr_pos by owners": {"scale": "spectral", **A2A},
    "polar by owners": {"right_factor": "polar", **A2A},
    "interp by owners": {"right_factor": "interp", "tau": 0.7, **A2A},
}


def rule_of(name: str, rank: int, **more: Any) -> OrthDion:
    return OrthDion(lr=0.05, rank=rank, **(FAMILY[name] | more))


def expected(rule: OrthDion, parameter: Parameter, mesh: MeshShape, steps: int = 4) -> judges.Trace:
    mean = mean_gradient(random_gradient(PARAMETERS), mesh)
    m, n = parameter.shape
    r = rule.low_rank(parameter.shape)
    return judges.orth_dion(
        first_value(parameter),
        [mean(parameter.name, step) for step in range(steps)],
        torch.linalg.qr(normal((m, r), 0, f"V/{parameter.name}"))[0],
        lr=rule.lr,
        weight_decay=rule.weight_decay,
        scale=update_scale(rule.scale, m, n, r),
        error_feedback=rule.error_feedback,
        beta=rule.beta,
        right_factor="exact_svd" if rule.right_factor == "exact_svd" else judges.right_factor_of(rule),
    )


@pytest.mark.parametrize(
    ("driver", "mesh"),
    [*((Cohort(), mesh) for mesh in MESHES[:4]), (Coroutines(), MeshShape(2, 2))],
    ids=lambda value: getattr(value, "name", str(value)),
)
@pytest.mark.parametrize("rank", [2, 5])
@pytest.mark.parametrize("name", FAMILY)
def test_agrees_with_the_dense_judge(driver: Driver, mesh: MeshShape, rank: int, name: str) -> None:
    """Rank 2 is compressed on replicas but for the oracle, rank 5 is not."""
    rule = rule_of(name, rank)
    outcome = train(driver, mesh, rule, PARAMETERS, random_gradient(PARAMETERS), steps=4)
    for parameter in PARAMETERS:
        judge = expected(rule, parameter, mesh).x
        for trained in outcome.results:
            got = trained.parameters[parameter.name]
            torch.testing.assert_close(got, judge, rtol=0, atol=1e-10)
            assert torch.equal(got, outcome.results[0].parameters[parameter.name]), "replicas differ"
    for trained in outcome.results:
        for state, assignment in zip(trained.states, trained.assignments, strict=True):
            dummies = slice(len(assignment.stack.names), None)
            assert not state.basis[..., dummies, :, :].any()
            assert not state.buffer[..., dummies, :, :].any()
            if isinstance(driver, Cohort):
                for shard in range(state.basis.shape[1]):
                    real = max(0, assignment.stack.shape[0] - shard * assignment.stack.rows)
                    assert not state.basis[:, shard, :, real:].any(), "padding rows stay zero"


def test_the_family_is_complete() -> None:
    """Every registered factor has a judge, here or in test_low_rank."""
    assert {OrthDion(lr=1, rank=1, **more).right_factor for more in FAMILY.values()} | {"colnorm", "qr_raw"} == set(
        RIGHT_FACTORS
    )


def inner(w: Tensor, v: Tensor) -> float:
    return float((w * v).sum())


def test_the_order_of_the_captured_inner_products() -> None:
    """Card 1: sum R_jj (qr_pos) <= ||W||_* (polar) <= sum ||w_j|| (colnorm), strictly for a Gaussian W."""
    for seed in range(5):
        w = normal((12, 5), seed, "w")
        qr, polar, columns = (inner(w, judges.RIGHT[name](w)) for name in ("qr_pos", "polar", "colnorm"))
        assert qr < polar < columns
        assert polar == pytest.approx(float(torch.linalg.svdvals(w).sum()), rel=1e-12)


def observed(rule: OrthDion, mesh: MeshShape, steps: int = 3) -> list[dict[str, Any]]:
    parameters = [Parameter(f"p{i}", (20, 14)) for i in range(4)]
    outcome = train(Coroutines(), mesh, rule, parameters, random_gradient(parameters), steps, measure=True)
    return outcome.observations


@pytest.mark.parametrize("mesh", [MeshShape(1, 1), MeshShape(2, 4)], ids=str)
@pytest.mark.parametrize(
    "name", ["polar", "interp to polar", "svd", "qr_pos auto", "qr_pos by owners", "polar by owners"]
)
def test_orthonormal_factors_have_norm_one_and_never_climb(mesh: MeshShape, name: str) -> None:
    """Card 1, test 1."""
    for row in observed(rule_of(name, 6), mesh):
        assert float(row["nu"]) == pytest.approx(1, abs=1e-9)
        assert float(row["sign_fraction"]) == 0


def test_blocks_have_norms_between_one_and_unit_columns_and_raw_ones_climb() -> None:
    """Card 19, claim 1: smaller blocks have larger norms; only raw signs make ascent steps."""
    columns, small, large, whole = (
        sum(float(row["nu"]) for row in observed(OrthDion(lr=0.05, rank=8, **more), MeshShape(1, 2)))
        for more in (
            {"right_factor": "colnorm"},
            {"right_factor": "block_qr", "block": 2},
            {"right_factor": "block_qr", "block": 4},
            {"right_factor": "block_qr", "block": 8},
        )
    )
    assert columns > small > large > whole
    fixed, raw = (observed(rule_of("block", 8, signs=signs), MeshShape(1, 2)) for signs in ("fixed", "raw"))
    assert all(float(row["sign_fraction"]) == 0 for row in fixed)
    assert 0.3 < sum(float(row["sign_fraction"]) for row in raw) / len(raw) < 0.7


def test_interpolation_ends_at_colnorm_and_at_polar() -> None:
    def moved(**more: Any) -> Tensor:
        rule = OrthDion(lr=0.05, rank=4, **more)
        outcome = train(Cohort(), MeshShape(1, 4), rule, PARAMETERS[:2], random_gradient(PARAMETERS))
        return outcome.results[0].parameters["a"]

    # colnorm's 1e-8 beside column norms of about one
    ends = [moved(right_factor="interp", tau=tau) for tau in (0.0, 1.0)]
    torch.testing.assert_close(ends[0], moved(right_factor="colnorm"), rtol=0, atol=1e-7)
    torch.testing.assert_close(ends[1], moved(right_factor="polar"), rtol=0, atol=1e-12)
    assert (ends[0] - ends[1]).norm() > 1e-3


@pytest.mark.parametrize("name", ["polar", "interp", "block", "qr_pos by owners", "polar by owners"])
def test_the_tracked_subspace_does_not_depend_on_the_right_factor(name: str) -> None:
    """Card 1, test 2: with lr = 0, span(V) is that of qr_pos at every step."""
    for steps in range(1, 4):
        spans = []
        for rule in (OrthDion(lr=0.05, rank=3, beta=0.9), rule_of(name, 3, beta=0.9)):
            outcome = train(
                Cohort(), MeshShape(1, 4), rule, PARAMETERS[:1], random_gradient(PARAMETERS), steps=steps, lr=0.0
            )
            v = outcome.results[0].states[0].basis[0, :, 0].flatten(0, 1)
            spans.append(v @ torch.linalg.pinv(v))
        torch.testing.assert_close(spans[0], spans[1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("form", ["gram", "all_to_all"])
@pytest.mark.parametrize("mesh", [MeshShape(1, 1), MeshShape(1, 4), MeshShape(2, 2)], ids=str)
def test_full_rank_polar_is_muon_without_nesterov(mesh: MeshShape, form: str) -> None:
    """Card 1, test 3: EF-C with beta 1 - mu at full rank is the polar factor of the momentum sum."""
    mu = 0.8
    rule = OrthDion(lr=0.05, rank=7, right_factor="polar", error_feedback="code", beta=1 - mu, orthonormalization=form)
    trained = train(Cohort(), mesh, rule, PARAMETERS[:1], random_gradient(PARAMETERS)).results[0]
    mean, x, momentum = mean_gradient(random_gradient(PARAMETERS), mesh), first_value(PARAMETERS[0]), torch.zeros(10, 7)
    for step in range(5):
        momentum = mu * momentum + mean("a", step)
        x = x - 0.05 * judges.polar(momentum)
    torch.testing.assert_close(trained.parameters["a"], x, rtol=0, atol=1e-10)
    # and Muon itself, whose Newton-Schulz only approximates that factor, stays near
    muon = Muon(lr=0.05, mu=mu, convention="sum", nesterov=False, scale="none", coefficients="microsoft", ns_steps=12)
    near = train(Cohort(), mesh, muon, PARAMETERS[:1], random_gradient(PARAMETERS)).results[0].parameters["a"]
    assert float((near - x).norm()) < 0.1 * float((x - first_value(PARAMETERS[0])).norm())


@pytest.mark.parametrize("name", [name for name in FAMILY if "svd" not in name and "raw" not in name])
def test_signs_of_the_left_factor_do_not_matter(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Card 1, test 5."""
    rule, mesh = rule_of(name, 4), MeshShape(1, 2)
    plain = train(Cohort(), mesh, rule, PARAMETERS[:2], random_gradient(PARAMETERS)).results[0]
    original, calls = left_factor.orthonormalize, []

    def flipped(p: Tensor) -> Tensor:
        calls.append(1)
        return original(p) * torch.sign(normal((p.shape[-1],), len(calls), "flip"))

    monkeypatch.setattr(left_factor, "orthonormalize", flipped)
    again = train(Cohort(), mesh, rule, PARAMETERS[:2], random_gradient(PARAMETERS)).results[0]
    assert len(calls) == 5
    for key, value in plain.parameters.items():
        torch.testing.assert_close(value, again.parameters[key], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tau": 0.5}, "got tau 0.5 with right_factor qr_pos.*interp only: leave tau out"),
        ({"right_factor": "colnorm", "gram_passes": 1}, "got gram_passes 1 with right_factor colnorm"),
        ({"right_factor": "qr_raw", "orthonormalization": "all_to_all"}, "got orthonormalization all_to_all with"),
        ({"right_factor": "polar", "block": 4}, "got block 4 with right_factor polar.*block_qr only"),
        ({"signs": "raw"}, "got signs raw with right_factor qr_pos"),
        ({"right_factor": "interp"}, "right_factor interp without tau; expected both: write tau=0.5"),
        ({"right_factor": "block_qr"}, "right_factor block_qr without block; expected both: write block=8"),
        (A2A | {"gram_passes": 1}, "got gram_passes 1 with orthonormalization all_to_all"),
        ({"right_factor": "block_qr", "block": 2, "signs": "raw", "gram_passes": 1}, "gram_passes 1 with signs raw"),
        ({"right_factor": "interp", "tau": 1.5}, "from 0 to 1"),
        ({"name": "dion"}, "orth_dion"),
    ],
)
def test_settings_that_nothing_reads_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OrthDion(lr=0.1, rank=2, **settings)

"""What adaptive-rank rules send, against their ranks; and poor input (card 2, test 4 and Care)."""

from __future__ import annotations

import math
from math import ceil
from typing import Any

import pytest
import torch
from torch import Tensor

from simdist.errors import InputError
from simdist.optimizers import AdaDionV1, AdaDionV2, AdaDionV3, AdaOrthDion, MeshShape, stacks
from simdist.optimizers.adaptive_rank import AdaptiveRank
from simdist.program.random import normal
from tests.optimizers import judges_adaptive as judges
from tests.optimizers.harness import (
    Cohort,
    Coroutines,
    Outcome,
    Parameter,
    first_value,
    mean_gradient,
    random_gradient,
    train,
)
from tests.optimizers.test_adaptive_rank import PARAMETERS, SMALL, STEPS, gradient, traces

FACTORS, STATISTICS = 2, 4  # bytes a number: bf16 factors, fp32 statistics
RULES: dict[str, AdaptiveRank] = {
    "gram": AdaOrthDion(lr=0.05, rank=3, beta=0.3, **SMALL),
    "all_to_all": AdaOrthDion(lr=0.05, rank=3, orthonormalization="all_to_all", beta=0.3, **SMALL),
    "adadion_v1": AdaDionV1(lr=0.05, rank=4, mu=0.1, gamma=1.1, error_target=0.6, **SMALL),
    "adadion_v2": AdaDionV2(lr=0.05, mu=0.2, gamma=1.2, rank_fraction=0.6, **SMALL),
    "adadion_v3": AdaDionV3(lr=0.05, rank=6, gamma=1.05, **SMALL),
    "unlimited": AdaDionV3(lr=0.05, rank=6, gamma=1.05, buffer_limit=None, align_modes=True, **SMALL),
}


def ring(k: int) -> float:
    return (k - 1) / k


def formula(rule: AdaptiveRank, mesh: MeshShape, shape: tuple[int, int], count: int, k: int) -> float:
    """Bytes of one step of a stack of ``count`` matrices at width k, from the rules' docstrings."""
    (m, n), f, r = shape, mesh.shards, mesh.replicas
    c, rows = ceil(count / mesh.owners) * mesh.owners, ceil(m / f)
    factors = r > 1 and rule.replica_sync == "factors"
    modes, limited = isinstance(rule, AdaDionV3), isinstance(rule, AdaDionV3) and rule.buffer_limit is not None
    # numbers that all shards sum: the right factor's, the quality control's, the modes', the limit's
    statistics = {"gram": 2 * k * k, "all_to_all": k}.get(getattr(rule, "orthonormalization", ""), k)
    per_matrix = 2 * rule.quality_control + 2 * limited
    sent = 2 * ring(f) * (statistics + 2 * k * modes + per_matrix) * STATISTICS
    if getattr(rule, "orthonormalization", "") == "all_to_all":
        sent += 2 * ring(f) * rows * k * FACTORS
    if f > 1:
        sent += 2 * ring(f) * n * k * FACTORS
        if factors:
            sent += 2 * ring(r) * (n / f + rows) * k * FACTORS
    else:
        sent += (2 * ring(r) * (m + n) if factors else ring(r) * n) * k * FACTORS
    if factors:
        sent += 2 * ring(r) * (rows * k * modes * FACTORS + per_matrix * STATISTICS)
    return c * sent


@pytest.mark.parametrize(
    ("mesh", "replica_sync"),
    [
        (MeshShape(1, 1), "factors"),
        (MeshShape(1, 4), "factors"),
        (MeshShape(4, 1), "factors"),
        (MeshShape(4, 1), "gradients"),
        (MeshShape(2, 3), "factors"),
        (MeshShape(2, 3), "gradients"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("wire_form", ["active", "pad_to_cap"])
def test_bytes_follow_the_logged_ranks(mesh: MeshShape, name: str, wire_form: str, replica_sync: str) -> None:
    rule = RULES[name].model_copy(update={"wire_form": wire_form, "replica_sync": replica_sync})
    outcome = train(Cohort(), mesh, rule, PARAMETERS, gradient, steps=STEPS, measure=True)
    ranks, total, varied = traces(outcome), 0.0, False
    for shape, names in (((13, 9), "abc"), ((7, 10), "d")):
        widths = [max(ranks[name][t] for name in names) for t in range(STEPS)]
        varied |= len(set(widths)) > 1
        if wire_form == "pad_to_cap":
            assert max(widths) <= rule.rank_cap(shape)
            widths = [rule.rank_cap(shape)] * STEPS
        total += sum(formula(rule, mesh, shape, len(names), k) for k in widths)
    assert varied
    assert outcome.sent(factors=FACTORS, statistics=STATISTICS) == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("name", RULES)
def test_both_wire_forms_give_the_same_values(name: str) -> None:
    active, padded = (
        train(Coroutines(), MeshShape(2, 2), rule, PARAMETERS, gradient, steps=STEPS)
        for rule in (RULES[name], RULES[name].model_copy(update={"wire_form": "pad_to_cap"}))
    )
    for one, other in zip(active.results, padded.results, strict=True):
        for parameter, value in one.parameters.items():
            torch.testing.assert_close(value, other.parameters[parameter], rtol=0, atol=1e-10)
        for state, wide in zip(one.states, other.states, strict=True):
            assert torch.equal(state.rank, wide.rank)
            assert state.basis.shape[-1] <= wide.basis.shape[-1]


@pytest.mark.parametrize(
    "settings",
    [
        {"right_factor": "polar"},
        {"right_factor": "interp", "tau": 0.5},
        {"right_factor": "block_qr", "block": 2},
        {"right_factor": "qr_raw"},
        {"right_factor": "polar", "orthonormalization": "all_to_all"},
        {"gram_passes": "auto"},
    ],
    ids=str,
)
def test_every_right_factor_leaves_padding_out(settings: dict[str, Any]) -> None:
    active, padded = (
        train(
            Cohort(),
            MeshShape(2, 2),
            AdaOrthDion(lr=0.05, rank=3, beta=0.3, wire_form=form, **settings, **SMALL),
            PARAMETERS,
            gradient,
            steps=STEPS,
            measure=True,
        )
        for form in ("active", "pad_to_cap")
    )
    assert traces(active) == traces(padded)
    for name, value in active.results[0].parameters.items():
        torch.testing.assert_close(value, padded.results[0].parameters[name], rtol=0, atol=1e-10)
    assert not any(t.tensor.endswith("gram again") for t in padded.transfers), "zero columns are no dependent ones"


@pytest.mark.parametrize("name", ["gram", "unlimited"])
@pytest.mark.parametrize("left_factor", ["rcqr", "cqr"])
def test_every_left_factor_leaves_padding_out(name: str, left_factor: str) -> None:
    """As many columns of zeros as there are, U Vbar^T is Householder's; V3 pairs modes whatever their signs."""
    # one step of warm-up: cqr's own path is taken too
    other = RULES[name].model_copy(update={"left_factor": left_factor, "wire_form": "pad_to_cap", "cqr_warmup": 1})
    one, two = (
        train(Cohort(), MeshShape(2, 2), rule, PARAMETERS, gradient, steps=STEPS, measure=True)
        for rule in (RULES[name], other)
    )
    assert traces(one) == traces(two)
    for parameter, value in one.results[0].parameters.items():
        torch.testing.assert_close(value, two.results[0].parameters[parameter], rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", ["gram", "adadion_v2", "unlimited"])
def test_own_buffers_have_the_same_mean(name: str) -> None:
    """What compressed replicas clear of their own is, on average, what they clear of the average."""
    rule = RULES[name].model_copy(update={"replica_sync": "factors"})
    own = rule.model_copy(update={"cleared": "own"})
    one, two = (train(Cohort(), MeshShape(2, 2), r, PARAMETERS, gradient, steps=STEPS).results[0] for r in (rule, own))
    for parameter, value in one.parameters.items():
        torch.testing.assert_close(value, two.parameters[parameter], rtol=0, atol=1e-10)
    assert (one.states[0].buffer - two.states[0].buffer).norm() > 0.01


def test_padding_to_the_cap_saves_nothing_and_active_columns_do() -> None:
    """V2's FSDP path at its defaults but for the size: a first rank of a quarter, a cap of 0.7."""

    def run(wire_form: str) -> Outcome:
        rule = AdaDionV2(lr=0.05, gamma=1.0, rank_min=1, rank_multiple=1, wire_form=wire_form)
        return train(Cohort(), MeshShape(1, 4), rule, PARAMETERS, gradient, steps=3)

    active, padded = (run(form).sent(factors=2, statistics=4) for form in ("active", "pad_to_cap"))
    fixed = 3 * sum(
        formula(RULES["adadion_v2"], MeshShape(1, 4), shape, count, k)
        for shape, count, k in (((13, 9), 3, 7), ((7, 10), 1, 5))
    )
    assert padded == pytest.approx(fixed)
    assert active < 0.6 * padded


def test_replicas_exchange_factors_where_they_are_smaller_at_the_cap() -> None:
    mesh = MeshShape(2, 4)
    assert not AdaOrthDion(lr=0.1).syncs_replicas((768, 768), mesh), "0.7 of a square is too much"
    assert AdaOrthDion(lr=0.1, rank_max_fraction=0.49).syncs_replicas((768, 768), mesh)
    assert AdaOrthDion(lr=0.1, replica_sync="factors").syncs_replicas((768, 768), mesh)
    assert not AdaOrthDion(lr=0.1, replica_sync="gradients", rank_max=4).syncs_replicas((768, 768), mesh)
    assert not AdaOrthDion(lr=0.1, replica_sync="factors").syncs_replicas((768, 768), MeshShape(1, 8))
    assert not AdaDionV3(lr=0.1).syncs_replicas((2, 1000), mesh), "a cap that is the whole matrix"


def poor(kind: str, shape: tuple[int, int]) -> Tensor:
    g = normal(shape, 5, "poor")
    if kind == "one entry":
        return torch.nn.functional.one_hot(torch.tensor(3), shape[0] * shape[1]).double().reshape(shape)
    values = {
        "zero": 0 * g,
        "rank one": g[:, :1] @ g[:1, :],
        "one row": torch.cat([g[:1], torch.zeros_like(g[1:])]),
        "tiny": 1e-20 * g,
        "huge": 1e20 * g,
    }
    return values[kind]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ["zero", "rank one", "one entry", "one row", "tiny", "huge"])
@pytest.mark.parametrize("name", ["gram", "adadion_v1", "adadion_v2", "adadion_v3"])
def test_poor_gradients_leave_everything_finite_and_neighbours_alone(name: str, kind: str, dtype: torch.dtype) -> None:
    """Card 2, Care: padded columns are never cleaned of NaN, as there is none."""
    rule, good = RULES[name], gradient

    def mixed(parameter: str, step: int, worker: int) -> Tensor:
        return poor(kind, (13, 9)) if parameter == "a" else good(parameter, step, worker)

    outcome = train(Cohort(), MeshShape(1, 2), rule, PARAMETERS[:2], mixed, steps=4, dtype=dtype)
    trained = outcome.results[0]
    for leaf in (*trained.states[0], *trained.parameters.values()):
        assert leaf.isfinite().all()
    moved = trained.parameters["a"] - first_value(PARAMETERS[0]).to(dtype)
    assert torch.linalg.matrix_norm(moved.double(), 2) < 5 * rule.lr * 3 * math.sqrt(13 / 9)
    if kind == "zero":
        assert not moved.any()
    alone = train(Cohort(), MeshShape(1, 2), rule, PARAMETERS[1:2], mixed, steps=4, dtype=dtype).results[0]
    assert trained.states[0].rank.flatten()[1] == alone.states[0].rank.flatten()[0]
    tolerance = 1e-10 if dtype == torch.float64 else 1e-3
    torch.testing.assert_close(trained.parameters["b"], alone.parameters["b"], rtol=0, atol=tolerance)


def test_a_gradient_that_is_not_a_number_shows_in_its_own_matrix_only() -> None:
    def broken(name: str, step: int, worker: int) -> Tensor:
        return torch.full((13, 9), math.nan) if name == "a" else gradient(name, step, worker)

    for rule in RULES.values():
        trained = train(Cohort(), MeshShape(1, 2), rule, PARAMETERS[:2], broken, steps=3, measure=True).results[0]
        assert trained.parameters["a"].isnan().any()
        assert trained.parameters["b"].isfinite().all()
        assert trained.states[0].rank.min() > 0


def test_first_ranks_and_either_way_of_giving_them() -> None:
    assert AdaOrthDion(lr=0.1).low_rank((30, 40)) == 8, "a quarter, rounded up"
    assert AdaOrthDion(lr=0.1, rank=64).low_rank((30, 40)) == 21, "cut to r_cap"
    assert AdaDionV1(lr=0.1).low_rank((300, 400)) == 64
    assert AdaDionV1(lr=0.1, rank_fraction=0.5).low_rank((300, 400)) == 150
    assert AdaDionV3(lr=0.1).low_rank((30, 40)) == 30
    again = AdaDionV1.model_validate(AdaDionV1(lr=0.1, rank_fraction=0.5).model_dump())
    assert again.rank is None
    with pytest.raises(ValueError, match="got both of rank and rank_fraction"):
        AdaOrthDion(lr=0.1, rank=3, rank_fraction=0.5)
    assert stacks(AdaDionV1(lr=0.1), PARAMETERS, MeshShape(1, 2)), "a first rank above the matrix is cut, not refused"


def test_the_oracle_of_orth_dion_is_refused() -> None:
    with pytest.raises((ValueError, InputError), match=r"exact_svd.*write right_factor=qr_pos"):
        AdaOrthDion(lr=0.1, right_factor="exact_svd")


def test_random_gradients_reach_the_default_ranks() -> None:
    """With nothing scaled down: V2's constants against the judge's, and a cap that is no multiple of eight."""
    parameters = [Parameter("a", (90, 100))]
    random = random_gradient(parameters)
    outcome = train(Cohort(), MeshShape(1, 2), AdaDionV2(lr=0.01, gamma=2.0), parameters, random, steps=9, measure=True)
    grads = [[mean_gradient(random, MeshShape(1, 2))("a", t)] for t in range(9)]
    history = judges.adaptive(
        first_value(parameters[0]),
        grads,
        normal((90, 23), 0, "V/a"),
        "a",
        judges.Controller(rank=23, cap=63, gamma=2.0),
        judges.Feedback(1.0, 0.05),
        lr=0.01,
        scale="spectral",
    )
    ranks = [int(row["rank"]) for row in outcome.observations]
    assert ranks == history.ranks
    assert ranks[0] == 23
    assert ranks[1] == 39, "sixteen up"
    assert ranks[-1] > 50
    torch.testing.assert_close(outcome.results[0].parameters["a"], history.x, rtol=0, atol=1e-10)

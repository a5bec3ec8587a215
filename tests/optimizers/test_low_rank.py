"""Dion and Orth-Dion against dense judges on every mesh, and the laws of card 1."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from simdist.errors import InputError
from simdist.optimizers import Dion, MeshShape, OrthDion, left_factor, low_rank, stacks
from simdist.optimizers.low_rank import LowRank
from simdist.optimizers.rule import Rule
from simdist.optimizers.spectral import update_scale
from simdist.program.random import normal
from tests.optimizers import judges
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

# three tall and two wide matrices, none of whose sides divides by four
PARAMETERS = [
    Parameter("a", (10, 7)),
    Parameter("b", (10, 7)),
    Parameter("c", (10, 7)),
    Parameter("d", (5, 9)),
    Parameter("e", (5, 9)),
]
#: (m+n) r < m n for both shapes at rank 2 and for neither at rank 5: compressed and not compressed
RANKS = [2, 5]

RULES: dict[str, dict[str, object]] = {
    "orth_dion paper": {"error_feedback": "paper", "beta": 0.8, "scale": "none"},
    "orth_dion code": {"error_feedback": "code", "beta": 0.3, "scale": "spectral"},
    "orth_dion one pass": {"gram_passes": 1, "weight_decay": 0.1},
    "orth_dion colnorm": {"right_factor": "colnorm", "scale": "rank_comp"},
}


def expected(rule: LowRank, parameter: Parameter, mesh: MeshShape, seed: int = 0) -> Tensor:
    mean = mean_gradient(random_gradient(PARAMETERS), mesh)
    grads = [mean(parameter.name, step) for step in range(5)]
    m, n = parameter.shape
    r = rule.low_rank(parameter.shape)
    v = normal((m, r), seed, f"V/{parameter.name}")
    x = first_value(parameter)
    if isinstance(rule, Dion):
        return judges.dion(x, grads, v, lr=rule.lr, weight_decay=rule.weight_decay, mu=rule.mu)
    assert isinstance(rule, OrthDion)
    return judges.orth_dion(
        x,
        grads,
        torch.linalg.qr(v)[0],
        lr=rule.lr,
        weight_decay=rule.weight_decay,
        scale=update_scale(rule.scale, m, n, r),
        error_feedback=rule.error_feedback,
        beta=rule.beta,
        right_factor=rule.right_factor,
    ).x


def check_against_judge(driver: Driver, mesh: MeshShape, rule: LowRank) -> None:
    outcome = train(driver, mesh, rule, PARAMETERS, random_gradient(PARAMETERS))
    for trained in outcome.results:
        for parameter in PARAMETERS:
            got = trained.parameters[parameter.name]
            torch.testing.assert_close(got, expected(rule, parameter, mesh), rtol=0, atol=1e-10)
            assert torch.equal(got, outcome.results[0].parameters[parameter.name]), "replicas differ"
        for x, state, assignment in zip(trained.shards, trained.states, trained.assignments, strict=True):
            check_padding(driver, mesh, x, assignment.stack)
            check_padding(driver, mesh, state.buffer, assignment.stack)
            check_padding(driver, mesh, state.basis, assignment.stack)


def check_padding(driver: Driver, mesh: MeshShape, x: Tensor, stack: low_rank.Stack) -> None:
    assert not x[..., len(stack.names) :, :, :].any(), "dummies stay zero"
    if isinstance(driver, Cohort):
        for shard in range(x.shape[1]):
            real = max(0, stack.shape[0] - shard * stack.rows)
            assert not x[:, shard, :, real:].any(), "padding rows stay zero"


@pytest.mark.parametrize("driver", DRIVERS, ids=lambda d: d.name)
@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("name", [*RULES, "dion"])
def test_agrees_with_the_dense_judge(driver: Driver, mesh: MeshShape, rank: int, name: str) -> None:
    if name == "dion":
        rule: LowRank = Dion(lr=0.05, rank=rank, mu=0.9, weight_decay=0.1)
    else:
        rule = OrthDion(lr=0.05, rank=rank, **RULES[name])
    assert rule.syncs_replicas((10, 7), mesh) == (mesh.replicas > 1 and rank == 2)
    check_against_judge(driver, mesh, rule)


@pytest.mark.parametrize("driver", DRIVERS, ids=lambda d: d.name)
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_raw_qr_is_householders_on_the_whole_right_factor(driver: Driver, mesh: MeshShape) -> None:
    check_against_judge(driver, mesh, OrthDion(lr=0.05, rank=2, right_factor="qr_raw"))


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("rank", RANKS)
def test_cohort_and_coroutines_agree_and_book_the_same(mesh: MeshShape, rank: int) -> None:
    rule = OrthDion(lr=0.05, rank=rank, beta=0.9)
    one, other = (train(d, mesh, rule, PARAMETERS, random_gradient(PARAMETERS), measure=True) for d in DRIVERS)
    for name, value in one.results[0].parameters.items():
        torch.testing.assert_close(other.results[0].parameters[name], value, rtol=0, atol=1e-10)
    assert one.transfers == other.transfers
    assert one.flops == other.flops
    for row, again in zip(one.observations, other.observations, strict=True):
        assert row.pop("matrix") == again.pop("matrix")
        assert {k: float(v) for k, v in row.items()} == pytest.approx({k: float(v) for k, v in again.items()}, abs=1e-9)


def test_compressed_replicas_follow_one_worker_for_long() -> None:
    """Card 3, test 2: X and the mean buffer after 400 steps, although each replica's buffer wanders off."""
    mesh, parameters = MeshShape(2, 2), [Parameter("a", (10, 7))]
    gradient, rule = random_gradient(parameters), Dion(lr=0.01, rank=2)
    mean = mean_gradient(gradient, mesh)
    many = train(Cohort(), mesh, rule, parameters, gradient, steps=400).results[0]
    one = train(Cohort(), MeshShape(1, 1), rule, parameters, lambda n, s, w: mean(n, s), steps=400).results[0]
    torch.testing.assert_close(many.parameters["a"], one.parameters["a"], rtol=0, atol=1e-8)
    buffers = many.states[0].buffer
    average = torch.cat([buffers[:, 0], buffers[:, 1]], dim=-2).mean(dim=0)[0, :10]
    torch.testing.assert_close(average, one.states[0].buffer[0, 0, 0], rtol=0, atol=1e-8)
    assert (buffers[0] - buffers[1]).norm() > 1


def test_dion_is_orth_dion_with_colnorm_and_beta_one_minus_mu() -> None:
    parameters = [Parameter("a", (10, 7))]
    gradient = random_gradient(parameters)
    start = {"a": normal((10, 3), 0, "V/a")}

    class Started(OrthDion):
        def start(self, gaussian: Tensor) -> Tensor:
            return start["a"]

    orth = Started(lr=0.1, rank=3, right_factor="colnorm", error_feedback="code", beta=0.25, scale="spectral")
    dion = Dion(lr=0.1, rank=3, mu=0.75)
    one, other = (train(Coroutines(), MeshShape(1, 1), rule, parameters, gradient).results[0] for rule in (orth, dion))
    assert torch.equal(one.parameters["a"], other.parameters["a"])


def test_full_rank_dion_is_plain_momentum() -> None:
    """Card 3, test 3: B_t = mu B_(t-1) + G_t at full rank, so the buffer is mu times that sum."""
    parameters = [Parameter("a", (5, 9))]
    gradient = random_gradient(parameters)
    trained = train(Coroutines(), MeshShape(1, 1), Dion(lr=0.1, rank=5, mu=0.9), parameters, gradient).results[0]
    total = torch.zeros(5, 9, dtype=torch.float64)
    for step in range(5):
        total = 0.9 * total + gradient("a", step, 0)
    torch.testing.assert_close(trained.states[0].buffer[0], 0.9 * total, rtol=0, atol=1e-10)


@pytest.mark.parametrize("other", ["colnorm", "qr_raw"])
def test_the_tracked_subspace_does_not_depend_on_the_right_factor(other: str) -> None:
    """Card 1, test 2, by the state: the new V spans the same space, at every step, with lr = 0."""
    parameters, mesh = [Parameter("a", (10, 7))], MeshShape(1, 4)
    for steps in range(1, 5):
        projectors = []
        for right_factor in ("qr_pos", other):
            rule = OrthDion(lr=0.1, rank=3, right_factor=right_factor)
            outcome = train(Cohort(), mesh, rule, parameters, random_gradient(parameters), steps=steps, lr=0.0)
            v = outcome.results[0].states[0].basis[0, :, 0].flatten(0, 1)
            projectors.append(v @ torch.linalg.pinv(v))
            assert torch.equal(outcome.results[0].parameters["a"], first_value(parameters[0]))
        torch.testing.assert_close(projectors[0], projectors[1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("right_factor", ["qr_pos", "colnorm"])
def test_signs_of_the_left_factor_do_not_matter(monkeypatch: pytest.MonkeyPatch, right_factor: str) -> None:
    """Card 1, test 5."""
    parameters, mesh = [Parameter("a", (10, 7)), Parameter("b", (10, 7))], MeshShape(1, 2)
    rule = OrthDion(lr=0.1, rank=4, right_factor=right_factor)
    plain = train(Cohort(), mesh, rule, parameters, random_gradient(parameters)).results[0]
    original, calls = left_factor.orthonormalize, []

    def flipped(p: Tensor) -> Tensor:
        calls.append(1)
        return original(p) * torch.sign(normal((p.shape[-1],), len(calls), "flip"))

    monkeypatch.setattr(left_factor, "orthonormalize", flipped)
    again = train(Cohort(), mesh, rule, parameters, random_gradient(parameters)).results[0]
    assert len(calls) == 5
    for name in plain.parameters:
        torch.testing.assert_close(plain.parameters[name], again.parameters[name], rtol=0, atol=1e-10)


def diagnostics(rule: Rule, mesh: MeshShape, shape: tuple[int, int], count: int = 6) -> list[dict[str, object]]:
    parameters = [Parameter(f"p{i}", shape) for i in range(count)]
    return train(Coroutines(), mesh, rule, parameters, random_gradient(parameters), measure=True).observations


@pytest.mark.parametrize("mesh", [MeshShape(1, 1), MeshShape(2, 4)], ids=str)
def test_orthonormal_right_factor_has_norm_one_and_never_climbs(mesh: MeshShape) -> None:
    rows = diagnostics(OrthDion(lr=0.1, rank=8), mesh, (30, 22))
    assert len(rows) == 6 * 5
    for row in rows:
        assert float(row["nu"]) == pytest.approx(1, abs=1e-9)
        assert float(row["sign_fraction"]) == 0
        assert 0 < float(row["tracking_error"]) < 1
        assert 1 <= float(row["effective_rank"]) <= 8


@pytest.mark.parametrize("mesh", [MeshShape(1, 1), MeshShape(2, 4)], ids=str)
def test_unit_columns_have_a_norm_between_one_and_root_r(mesh: MeshShape) -> None:
    rows = diagnostics(OrthDion(lr=0.1, rank=8, right_factor="colnorm"), mesh, (30, 22))
    assert all(1 < float(row["nu"]) < math.sqrt(8) for row in rows)
    assert all(float(row["sign_fraction"]) == 0 for row in rows)


def test_raw_qr_turns_about_half_of_the_columns_into_ascent() -> None:
    # Measured on W = M U with U's own signs random as well, so a coin is tossed for every column.
    rows = diagnostics(OrthDion(lr=0.1, rank=8, right_factor="qr_raw"), MeshShape(1, 2), (30, 22), count=8)
    assert 0.35 < sum(float(row["sign_fraction"]) for row in rows) / len(rows) < 0.65


@pytest.mark.parametrize("driver", DRIVERS, ids=lambda d: d.name)
@pytest.mark.parametrize("mesh", [MeshShape(1, 1), MeshShape(2, 4)], ids=str)
@pytest.mark.parametrize("right_factor", ["qr_pos", "colnorm", "qr_raw"])
def test_zero_gradients_leave_parameters_to_weight_decay(driver: Driver, mesh: MeshShape, right_factor: str) -> None:
    parameters = PARAMETERS[:3]
    rule = OrthDion(lr=0.1, rank=2, right_factor=right_factor, weight_decay=0.5)
    zero = random_gradient(parameters, scale=0.0)
    trained = train(driver, mesh, rule, parameters, zero, steps=2, measure=True).results[0]
    started = train(driver, mesh, rule, parameters, zero, steps=0).results[0]
    for parameter in parameters:
        torch.testing.assert_close(trained.parameters[parameter.name], first_value(parameter) * 0.95**2)
    assert torch.equal(trained.states[0].basis, started.states[0].basis), "V is kept"


def poor_gradient(kind: str, shape: tuple[int, int]) -> Tensor:
    g = normal(shape, 5, "poor")
    if kind == "rank one":
        return g[:, :1] @ g[:1, :]
    if kind == "rank two of four":
        return g[:, :2] @ g[:2, :]
    if kind == "one entry":
        return torch.nn.functional.one_hot(torch.tensor(3), shape[0] * shape[1]).double().reshape(shape)
    if kind == "one row":
        return torch.cat([g[:1], torch.zeros_like(g[1:])])
    return g * {"tiny": 1e-20, "huge": 1e20, "graded": 1.0}[kind] * torch.logspace(0, -6 * (kind == "graded"), shape[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ["rank one", "rank two of four", "one entry", "one row", "tiny", "huge", "graded"])
@pytest.mark.parametrize(
    "rule", [OrthDion(lr=0.1, rank=4), OrthDion(lr=0.1, rank=4, right_factor="qr_raw"), Dion(lr=0.1, rank=4)]
)
def test_poor_gradients_give_finite_bounded_updates(rule: LowRank, kind: str, dtype: torch.dtype) -> None:
    parameters = [Parameter("a", (12, 9)), Parameter("b", (12, 9))]
    value = poor_gradient(kind, (12, 9))
    good = normal((12, 9), 6, "good")

    def gradient(name: str, step: int, worker: int) -> Tensor:
        return value if name == "a" else good

    outcome = train(Cohort(), MeshShape(1, 4), rule, parameters, gradient, dtype=dtype, measure=True)
    trained = outcome.results[0]
    nus = [float(row["nu"]) for row in outcome.observations]
    assert all(math.isfinite(nu) and nu <= (1.001 if rule.name == "orth_dion" else 2.001) for nu in nus)
    moved = trained.parameters["a"] - first_value(parameters[0]).to(dtype)
    assert moved.isfinite().all()
    assert torch.linalg.matrix_norm(moved.double(), 2) < 5 * 0.1 * 2 * math.sqrt(12 / 9)
    for leaf in (*trained.states[0], trained.parameters["b"]):
        assert leaf.isfinite().all()
    alone = train(Cohort(), MeshShape(1, 4), rule, parameters[1:], gradient, dtype=dtype).results[0]
    torch.testing.assert_close(trained.parameters["b"], alone.parameters["b"])


@pytest.mark.parametrize("kind", ["rank one", "rank two of four", "one entry", "one row"])
def test_rank_deficient_gradients_move_along_themselves_only(kind: str) -> None:
    """Directions that no gradient ever had get no update, on any mesh: rounding noise is not blown up."""
    parameters = [Parameter("a", (12, 9))]
    value = poor_gradient(kind, (12, 9))
    moves = []
    for mesh in MESHES:
        rule = OrthDion(lr=0.1, rank=4)
        trained = train(Cohort(), mesh, rule, parameters, lambda *_: value, steps=3).results[0]
        moves.append(trained.parameters["a"] - first_value(parameters[0]))
    left, right = (m @ torch.linalg.pinv(m, rcond=1e-10) for m in (value, value.T))
    for move in moves:
        torch.testing.assert_close(left @ move @ right, move, rtol=0, atol=1e-9)
        torch.testing.assert_close(move, moves[0], rtol=0, atol=1e-9)
        assert move.norm() > 0.05


@pytest.mark.parametrize("mesh", [MeshShape(1, 1), MeshShape(4, 1)], ids=str)
def test_single_row_and_single_column(mesh: MeshShape) -> None:
    parameters = [Parameter("row", (1, 8)), Parameter("column", (8, 1))]
    gradient = random_gradient(parameters)
    mean = mean_gradient(gradient, mesh)
    trained = train(Coroutines(), mesh, OrthDion(lr=0.1, rank=1), parameters, gradient, steps=1).results[0]
    for p in parameters:
        g = mean(p.name, 0)
        torch.testing.assert_close(trained.parameters[p.name], first_value(p) - 0.1 * g / g.norm())


def test_other_workers_wire_precision_does_not_break_the_factor() -> None:
    """Statistics that travelled in float32 under a float64 run: near-dependent columns are not taken for directions."""

    class Rounded(Cohort):
        def answer(self, mesh: MeshShape, requests: list[object]) -> list[Tensor]:  # type: ignore[override]
            got = super().answer(mesh, requests)
            wire = requests[0].label.wire  # type: ignore[attr-defined]
            return [x.float().double() if wire in ("statistics", "factors") else x for x in got]

    parameters = [Parameter("a", (12, 9))]
    g = normal((12, 9), 5, "poor")
    value = g[:, :2] @ g[:2, :] + 1e-7 * g
    outcome = train(Rounded(), MeshShape(1, 4), OrthDion(lr=0.1, rank=4), parameters, lambda *_: value, measure=True)
    assert all(float(row["nu"]) < 1.003 and float(row["sign_fraction"]) == 0 for row in outcome.observations)


@pytest.mark.parametrize("rule", [OrthDion(lr=0.1, rank=2), Dion(lr=0.1, rank=2)], ids=lambda r: r.name)
def test_a_gradient_that_is_not_a_number_shows_in_the_parameters(rule: LowRank) -> None:
    """Nothing hides it, and nothing raises before the run itself notices that the loss is NaN."""

    def gradient(name: str, step: int, worker: int) -> Tensor:
        return torch.full((10, 7), torch.nan if name == "a" else 1.0, dtype=torch.float64)

    outcome = train(Cohort(), MeshShape(1, 4), rule, PARAMETERS[:2], gradient, measure=True)
    assert outcome.results[0].parameters["a"].isnan().any()
    assert outcome.results[0].parameters["b"].isfinite().all()


def test_bases_start_equal_on_all_workers_and_meshes() -> None:
    bases = []
    for mesh in MESHES:
        rule = OrthDion(lr=0.1, rank=3)
        trained = train(Cohort(), mesh, rule, PARAMETERS[:3], random_gradient(PARAMETERS), steps=0).results[0]
        v = trained.states[0].basis
        assert v.shape[0] == 1
        bases.append(torch.cat(list(v[0]), dim=-2)[:3, :10])
    assert all(torch.equal(v, bases[0]) for v in bases)
    eye = torch.eye(3, dtype=torch.float64).expand(3, 3, 3)
    torch.testing.assert_close(bases[0].mT @ bases[0], eye)


@pytest.mark.parametrize(
    ("fraction", "multiple", "shape", "low_rank_"),
    [(0.1, 1, (30, 40), 3), (0.25, 1, (30, 40), 8), (0.25, 8, (100, 120), 32), (1.0, 8, (10, 12), 10)],
)
def test_rank_fraction_rounds_up_within_the_matrix(
    fraction: float, multiple: int, shape: tuple[int, int], low_rank_: int
) -> None:
    assert Dion(lr=0.1, rank_fraction=fraction, rank_multiple=multiple).low_rank(shape) == low_rank_


def test_replicas_are_compressed_only_where_strictly_smaller() -> None:
    mesh = MeshShape(2, 4)
    assert not OrthDion(lr=0.1, rank=384).syncs_replicas((768, 768), mesh)
    assert OrthDion(lr=0.1, rank=383).syncs_replicas((768, 768), mesh)
    assert not OrthDion(lr=0.1, rank=8).syncs_replicas((768, 768), MeshShape(1, 8))
    assert not Dion(lr=0.1, rank_fraction=1.0).syncs_replicas((2, 1000), mesh)
    assert OrthDion(lr=0.1, rank_fraction=0.25).syncs_replicas((768, 768), mesh)


def test_bad_ranks_are_refused_with_advice() -> None:
    with pytest.raises(InputError, match=r"rank 6, but the matrix 'd' is 5 x 9; expected at most 5.*rank_fraction"):
        stacks(OrthDion(lr=0.1, rank=6), PARAMETERS, MeshShape(1, 2))
    for both in ({}, {"rank": 2, "rank_fraction": 0.5}):
        with pytest.raises(ValueError, match="expected one: write rank=16"):
            Dion(lr=0.1, **both)
    with pytest.raises(ValueError, match="above 0"):
        Dion(lr=0.1, rank_fraction=0.0)


def test_the_left_factors_of_successive_steps_turn() -> None:
    """The judge's random stream really exercises the power step: the subspace changes from step to step."""
    gradient = random_gradient(PARAMETERS)
    trace = judges.orth_dion(
        first_value(PARAMETERS[0]),
        [gradient("a", step, 0) for step in range(5)],
        torch.linalg.qr(normal((10, 2), 0, "V/a"))[0],
        lr=0.1,
        weight_decay=0,
        scale=1,
        error_feedback="paper",
        beta=0.8,
        right_factor="qr_pos",
    )
    assert all((a @ a.T - b @ b.T).norm() > 0.1 for a, b in pairwise(trace.left))

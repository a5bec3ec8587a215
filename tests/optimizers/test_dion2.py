"""Dion2 and Dion3 against dense judges; which slices they take; their bytes in closed form (card 4)."""

from __future__ import annotations

from math import ceil
from typing import Any

import pytest
import torch
from torch import Tensor

from simdist.errors import InputError
from simdist.linalg.newton_schulz import COEFFICIENTS
from simdist.optimizers import Dion2, Dion3, MeshShape, Muon, stacks
from simdist.optimizers.spectral import update_scale
from simdist.optimizers.submatrix import Submatrix
from tests.optimizers import judges_others
from tests.optimizers.byte_forms_submatrix import submatrix
from tests.optimizers.harness import (
    DRIVERS,
    MESHES,
    Cohort,
    Coroutines,
    Driver,
    Outcome,
    Parameter,
    first_value,
    mean_gradient,
    random_gradient,
    train,
)
from tests.optimizers.judges_others import Choice, Followed

PARAMETERS = [Parameter("a", (10, 7)), Parameter("b", (10, 7)), Parameter("c", (5, 9)), Parameter("d", (6, 6))]
GRADIENT = random_gradient(PARAMETERS)
STEPS = 4

RULES: list[Submatrix] = [
    Dion2(lr=0.1),
    Dion2(lr=0.1, scope="global", fraction=0.5, ef_decay=0.8, weight_decay=0.1),
    Dion2(lr=0.1, select_dim="rows", fraction=0.4, form="gather", coefficients="jordan", scale="rms"),
    Dion2(lr=0.1, scope="global", form="gather", ns_steps=7, scale="rank_comp"),
    Dion3(lr=0.1, weight_decay=0.1),
    Dion3(lr=0.1, scope="global", fraction=0.5, mu=0.8, beta2=0.9),
    Dion3(lr=0.1, fraction=0.4, form="gather", rescale="shard"),
    Dion3(lr=0.1, scope="global", rescale="shard", scale="none"),
]


def label(rule: Submatrix) -> str:
    return f"{rule.name}-{rule.scope}-{rule.form}-{rule.fraction}"


def judged(rule: Submatrix, parameter: Parameter, mesh: MeshShape, steps: int = STEPS) -> Followed:
    """What a dense judge ends with; local choices are made in the blocks of rows that shards hold."""
    (m, n), shards = parameter.shape, mesh.shards
    mean = mean_gradient(GRADIENT, mesh)
    grads = [mean(parameter.name, step) for step in range(steps)]
    columns = isinstance(rule, Dion2) and rule.select_dim == "auto" and shards == 1 and m > n
    rows, table = ceil(m / shards), COEFFICIENTS[rule.coefficients]
    size = rows if rule.scope == "local" else m
    choice = Choice(rule.fraction, size, list(table.take(rule.ns_steps)), table.margin, table.eps, columns)
    taken = ceil(rule.fraction * n) if columns else ceil(rule.fraction * size) * (shards if size == rows else 1)
    x, scale = first_value(parameter), update_scale(rule.scale, m, n, min(m, n, taken))
    usual: dict[str, Any] = {"lr": rule.lr, "weight_decay": rule.weight_decay, "scale": scale}
    if isinstance(rule, Dion2):
        return judges_others.dion2(x, grads, choice, ef=rule.ef_decay, **usual)
    assert isinstance(rule, Dion3)
    rescaled = m if rule.rescale == "exact" else rows
    return judges_others.dion3(x, grads, choice, mu=rule.mu, beta2=rule.beta2, rescaled=rescaled, **usual)


def momentum_of(outcome: Outcome, name: str) -> Tensor:
    """The momentum of one matrix, whole; needs one coroutine per worker."""
    trained = outcome.results[0]
    for i, assignment in enumerate(trained.assignments):
        stack = assignment.stack
        if name in stack.names:
            parts = [each.states[i].momentum for each in outcome.results[: stack.mesh.shards]]
            return torch.cat(parts, dim=-2)[stack.names.index(name), : stack.shape[0]]
    raise AssertionError(name)


@pytest.mark.parametrize("driver", DRIVERS, ids=lambda d: d.name)
@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("rule", RULES, ids=label)
def test_agrees_with_the_dense_judge(driver: Driver, mesh: MeshShape, rule: Submatrix) -> None:
    outcome = train(driver, mesh, rule, PARAMETERS, GRADIENT, steps=STEPS)
    for parameter in PARAMETERS:
        expected = judged(rule, parameter, mesh)
        for trained in outcome.results:
            got = trained.parameters[parameter.name]
            torch.testing.assert_close(got, expected.x, rtol=0, atol=1e-10)
            assert torch.equal(got, outcome.results[0].parameters[parameter.name])
        if isinstance(driver, Coroutines):
            torch.testing.assert_close(momentum_of(outcome, parameter.name), expected.momentum, rtol=0, atol=1e-10)


@pytest.mark.parametrize("rule", RULES, ids=label)
def test_padding_and_dummies_stay_zero(rule: Submatrix) -> None:
    (trained,) = train(Cohort(), MeshShape(2, 4), rule, PARAMETERS, GRADIENT, steps=STEPS).results
    for x, state, assignment in zip(trained.shards, trained.states, trained.assignments, strict=True):
        stack = assignment.stack
        for value in (x, *state):
            assert not value[..., len(stack.names) :, :, :].any()
            for shard in range(4):
                assert not value[:, shard, :, max(0, stack.shape[0] - shard * stack.rows) :].any()


@pytest.mark.parametrize("kind", [Dion2, Dion3])
@pytest.mark.parametrize("fraction", [0.3, 0.6])
def test_global_scope_is_the_same_on_all_numbers_of_shards(kind: type[Dion2] | type[Dion3], fraction: float) -> None:
    more: dict[str, Any] = {"select_dim": "rows"} if kind is Dion2 else {}
    rule = kind(lr=0.1, fraction=fraction, scope="global", **more)
    ends = [
        train(Coroutines(), MeshShape(1, shards), rule, PARAMETERS, lambda name, step, _: GRADIENT(name, step, 0))
        for shards in (1, 2, 4)
    ]
    for parameter in PARAMETERS:
        one, *others = (end.results[0].parameters[parameter.name] for end in ends)
        for other in others:
            torch.testing.assert_close(other, one, rtol=0, atol=1e-10)


def test_local_scope_depends_on_the_number_of_shards() -> None:
    """By design (card 4): the union of every shard's largest rows is not the matrix' largest rows."""
    rule = Dion2(lr=0.1, select_dim="rows")
    one, two = (judged(rule, PARAMETERS[0], MeshShape(1, shards), 1).chosen[0] for shards in (1, 4))
    assert len(one) == 3
    assert len(two) == 4
    assert not set(one) <= set(two)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("scope", ["local", "global"])
def test_all_slices_are_muon_without_nesterov(mesh: MeshShape, scope: str) -> None:
    common: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.1, "coefficients": "polar_express", "scale": "spectral"}
    muon = Muon(mu=0.9, convention="sum", nesterov=False, **common)
    dion2 = Dion2.model_validate({"fraction": 1.0, "ef_decay": 0.9, "scope": scope, **common})
    one, other = (train(Cohort(), mesh, rule, PARAMETERS, GRADIENT).results[0].parameters for rule in (muon, dion2))
    for name in one:
        torch.testing.assert_close(other[name], one[name], rtol=0, atol=1e-10)


@pytest.mark.parametrize("mesh", [MeshShape(1, 1), MeshShape(1, 2), MeshShape(2, 4)], ids=str)
@pytest.mark.parametrize("rule", RULES, ids=label)
def test_slices_that_were_not_chosen_move_by_weight_decay_only(mesh: MeshShape, rule: Submatrix) -> None:
    rule = rule.model_copy(update={"weight_decay": 0.5})
    outcome = train(Coroutines(), mesh, rule, PARAMETERS, GRADIENT, steps=1)
    for parameter in PARAMETERS:
        m, n = parameter.shape
        columns = mesh.shards == 1 and m > n and isinstance(rule, Dion2) and rule.select_dim == "auto"
        followed = judged(rule, parameter, mesh, 1)
        moved = outcome.results[0].parameters[parameter.name] - (1 - 0.1 * 0.5) * first_value(parameter)
        quiet = (moved == 0).all(dim=0 if columns else 1)
        assert set((~quiet).nonzero().flatten().tolist()) == set(followed.chosen[0])
        assert quiet.any()


def test_what_is_not_chosen_waits_in_the_momentum() -> None:
    """Error feedback: with one gradient and nothing after it, every row has its turn, largest first."""
    parameter = Parameter("a", (4, 6))
    size = torch.tensor([[1.0], [4.0], [2.0], [3.0]], dtype=torch.float64)
    first = size * random_gradient([parameter])("a", 0, 0).sign()
    rule = Dion2(lr=0.1, ef_decay=0.1)
    order = []
    for steps in range(1, 5):
        outcome = train(
            Coroutines(), MeshShape(1, 1), rule, [parameter], lambda _, step, worker: first * (step == 0), steps=steps
        )
        order.append(momentum_of(outcome, "a").abs().sum(dim=1) < 0.5 * size[:, 0] * 6)
    assert [row.nonzero().flatten().tolist() for row in order] == [[1], [1, 3], [1, 2, 3], [0, 1, 2, 3]]


def test_dion3_gives_rows_equal_size_once_its_variance_has_settled() -> None:
    """Card 6: rows of the direction have equal root mean squares when v = s; here s never changes."""
    parameter = Parameter("a", (4, 6))
    constant = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)) @ random_gradient([parameter])(
        "a", 0, 0
    )
    rule = Dion3(lr=0.1, fraction=1.0, beta2=0.0, ns_steps=2)
    outcome = train(Coroutines(), MeshShape(1, 1), rule, [parameter], lambda *_: constant, steps=1)
    moved = (outcome.results[0].parameters["a"] - first_value(parameter)).norm(dim=1)
    torch.testing.assert_close(moved, moved[:1].expand(4), rtol=1e-6, atol=0)
    plain = train(
        Coroutines(),
        MeshShape(1, 1),
        Dion2(lr=0.1, fraction=1.0, ns_steps=2),
        [parameter],
        lambda *_: constant,
        steps=1,
    )
    size = (plain.results[0].parameters["a"] - first_value(parameter)).norm()
    torch.testing.assert_close(moved.norm(), size, rtol=1e-6, atol=0)


@pytest.mark.parametrize("mesh", [*MESHES, MeshShape(3, 2)], ids=str)
@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize("shape", [(10, 7), (8, 12)])
@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("kind", ["dion2", "dion3", "dion3 shard", "gather"])
def test_bytes_in_closed_form(mesh: MeshShape, count: int, shape: tuple[int, int], scope: str, kind: str) -> None:
    whole = scope == "global"
    rule, form = {
        "dion2": (Dion2(lr=0.1), submatrix(0.25, whole=whole, columns=True)),
        "dion3": (Dion3(lr=0.1, fraction=0.5), submatrix(0.5, whole=whole, norms=2)),
        "dion3 shard": (Dion3(lr=0.1, rescale="shard"), submatrix(0.25, whole=whole)),
        "gather": (Dion2(lr=0.1, form="gather"), submatrix(0.25, whole=whole, back=False)),
    }[kind]
    rule = rule.model_copy(update={"scope": scope})
    parameters = [Parameter(f"p{i}", shape) for i in range(count)]
    got = train(Cohort(), mesh, rule, parameters, random_gradient(parameters), steps=1)
    assert got.sent(factors=4, statistics=4) == pytest.approx(form(*shape, count, mesh), rel=1e-12)


def test_bytes_of_card_4_for_a_square_of_768() -> None:
    """F = 8 and alpha = 1/4: about 4 (F-1)/F^2 alpha mn bytes of bf16, a quarter of Muon's (card 20)."""
    form = submatrix(0.25)
    assert form(768, 768, 8, MeshShape(1, 8)) / 8 * 2 / 4 == 4 * 7 / 64 * 0.25 * 768 * 768 == 258048 / 4


def test_gathered_bytes_and_work() -> None:
    """Gathering sends once, and every worker repeats what owners share."""
    mesh, parameters = MeshShape(1, 4), [Parameter(f"p{i}", (8, 6)) for i in range(4)]
    owner, gather = (
        train(Cohort(), mesh, Dion2(lr=0.1, form=form), parameters, random_gradient(parameters), steps=1)
        for form in ("owner", "gather")
    )
    # one row of each matrix there and back, against one row of each to three others
    assert owner.sent(factors=2) == 2 * 3 / 4 * 4 * 6 * 2
    assert gather.sent(factors=2) == 3 * 4 * 6 * 2
    elementwise = 6 * 4 * 2 * 6
    assert gather.flops - elementwise == 4 * (owner.flops - elementwise) > 0


def test_smaller_matrices_cost_less_work() -> None:
    mesh, parameters = MeshShape(1, 1), [Parameter("a", (8, 12))]
    quarter, whole = (
        train(Cohort(), mesh, Dion2(lr=0.1, fraction=f), parameters, random_gradient(parameters), steps=1).flops
        for f in (0.25, 1.0)
    )
    assert quarter < whole / 4


def test_bfloat16_iteration_is_close_but_not_the_same() -> None:
    exact, rounded = (
        train(Cohort(), MeshShape(1, 2), Dion2(lr=0.1, ns_dtype=dtype), PARAMETERS, GRADIENT, steps=1)
        for dtype in ("same", "bfloat16")
    )
    for parameter in PARAMETERS:
        one, other = (each.results[0].parameters[parameter.name] for each in (exact, rounded))
        moved = (one - first_value(parameter)).norm()
        assert 0 < (one - other).norm() < 0.2 * moved


@pytest.mark.parametrize("scale", [1e-20, 1e20])
@pytest.mark.parametrize("rule", [RULES[0], RULES[1], RULES[4], RULES[5]], ids=label)
def test_extreme_gradients_stay_finite_in_single_precision(rule: Submatrix, scale: float) -> None:
    gradient = random_gradient(PARAMETERS, scale)
    (trained,) = train(Cohort(), MeshShape(1, 4), rule, PARAMETERS, gradient, dtype=torch.float32).results
    for parameter in PARAMETERS:
        assert trained.parameters[parameter.name].isfinite().all()


@pytest.mark.parametrize("kind", [Dion2, Dion3])
def test_settings_that_mean_nothing_are_refused(kind: type[Dion2] | type[Dion3]) -> None:
    for fraction in (0.0, 1.5):
        with pytest.raises(ValueError, match="expected a"):
            kind(lr=0.1, fraction=fraction)
    with pytest.raises(InputError, match="replicated"):
        stacks(kind(lr=0.1, form="replicated"), PARAMETERS, MeshShape(1, 2))


def test_the_number_of_slices_is_rounded_up_but_forgives_rounding_errors() -> None:
    sizes = {(0.25, 3): 1, (0.25, 8): 2, (0.3, 5): 2, (0.07, 100): 7, (0.01, 5): 1}
    assert {case: Dion2(lr=0.1, fraction=case[0]).slices(case[1]) for case in sizes} == sizes

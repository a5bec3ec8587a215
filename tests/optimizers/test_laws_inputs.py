"""Laws of every rule in the catalogue about what it is given: scale, zeros, poor inputs, states; nothing is harmed."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor

from simdist.optimizers import Assignment, MeshShape
from simdist.optimizers.rule import Rule
from simdist.program import Worker
from simdist.program.random import normal
from simdist.program.state import from_plain, to_plain
from tests.optimizers.catalogue import Case
from tests.optimizers.harness import (
    Cohort,
    Driver,
    Parameter,
    first_value,
    random_gradient,
    train,
)
from tests.optimizers.law_runs import (
    GRADIENT,
    PARAMETERS,
    SMALL,
    STEPS,
    bits,
    differing,
    over_cases,
    over_runs,
    random_run,
    watched_run,
)

in_both_precisions = pytest.mark.parametrize(
    ("driver", "mesh", "dtype"),
    [(*where, dtype) for where, dtype in zip(SMALL, (torch.float64, torch.float32), strict=True)],
    ids=["inline-float64", "stacked-float32"],
)


@over_cases()
def test_scale_invariance_is_as_declared(case: Case) -> None:
    """Upward, so that small constants in divisors matter less and less."""
    mesh, moves = MeshShape(2, 2), []
    for scale in (1.0, 1024.0):
        gradient = random_gradient(PARAMETERS, scale=scale)
        trained = train(Cohort(), mesh, case.rule, PARAMETERS, gradient, steps=3).results[0]
        moves.append(torch.cat([(trained.parameters[p.name] - first_value(p)).flatten() for p in PARAMETERS]))
    change = float((moves[1] - moves[0]).norm() / moves[0].norm())
    assert change < 1e-5 if case.scale_invariant else change > 1e-3, f"steps changed by {change:.1e} of their length"


@over_runs(SMALL)
def test_zero_gradients_leave_parameters_to_weight_decay(case: Case, driver: Driver, mesh: MeshShape) -> None:
    zero = random_gradient(PARAMETERS, scale=0.0)
    rule = case.rule.model_copy(update={"weight_decay": 0.5})
    trained = train(driver, mesh, rule, PARAMETERS, zero, steps=2).results[0]
    expected = {p.name: first_value(p) * (1 - rule.lr * 0.5) * (1 - rule.lr * 0.5) for p in PARAMETERS}
    assert case.decoupled == all(torch.equal(trained.parameters[name], x) for name, x in expected.items())
    if not case.decoupled:
        still = train(driver, mesh, case.rule.model_copy(update={"weight_decay": 0.0}), PARAMETERS, zero, steps=2)
        assert all(torch.equal(still.results[0].parameters[p.name], first_value(p)) for p in PARAMETERS)


@over_runs(SMALL)
def test_without_a_learning_rate_nothing_moves(case: Case, driver: Driver, mesh: MeshShape) -> None:
    trained = train(driver, mesh, case.rule, PARAMETERS, GRADIENT, steps=STEPS, lr=0.0).results[0]
    for parameter in PARAMETERS:
        assert torch.equal(trained.parameters[parameter.name], first_value(parameter)), parameter.name


@over_runs(SMALL)
def test_a_run_can_be_saved_and_resumed(case: Case, driver: Driver, mesh: MeshShape) -> None:
    """Through a file of plain tensors, into the form of a fresh state, with the same bits from there on."""

    def resumed(
        step: int, assignment: Assignment, x: Tensor, grad: Tensor, state: Any, worker: Worker
    ) -> tuple[Tensor, Tensor, Any]:
        if step == 2:
            file = io.BytesIO()
            torch.save(to_plain(state), file)
            file.seek(0)
            fresh = assignment.rule.init(assignment.stack, x, worker)
            state = from_plain(fresh, torch.load(file, weights_only=True))
        return x, grad, state

    outcome = train(driver, mesh, case.rule, PARAMETERS, GRADIENT, steps=STEPS, before=resumed)
    assert not differing(random_run(case.rule, mesh, driver), outcome)


@over_runs(SMALL)
def test_nothing_is_changed_in_place(case: Case, driver: Driver, mesh: MeshShape) -> None:
    """Neither parameters nor gradients nor states, neither in their own step nor later through an alias."""
    _, seen = watched_run(case.rule, mesh, driver)
    assert seen
    assert [path for path, now, then in seen if not torch.equal(now, then)] == []


def poor(kind: str, shape: tuple[int, int]) -> Tensor:
    """A gradient that offends a careless rule."""
    g = normal(shape, 5, "poor")
    if kind == "zero":
        return torch.zeros_like(g)
    if kind == "rank_one":
        return g[:, :1] @ g[:1, :]
    if kind == "rank_two":
        return g[:, :2] @ g[:2, :]
    if kind == "one_entry":
        return torch.where(g == g.max(), g, 0.0)
    if kind == "one_row":
        return torch.cat([g[:1], torch.zeros_like(g[1:])])
    if kind == "one_column":
        return torch.cat([g[:, :1], torch.zeros_like(g[:, 1:])], dim=-1)
    if kind == "constant":
        return torch.ones_like(g)
    if kind == "graded":
        return g * torch.logspace(0, -6, shape[1], dtype=g.dtype)
    return g * {"tiny": 1e-20, "huge": 1e20, "good": 1.0}[kind]


KINDS = ["zero", "rank_one", "rank_two", "one_entry", "one_row", "one_column", "constant", "graded", "tiny", "huge"]


def poor_gradients(parameters: list[Parameter]) -> Any:
    values = {p.name: poor(p.name.rstrip("'"), p.shape) for p in parameters}
    return lambda name, step, worker: values[name]


@in_both_precisions
@over_cases()
def test_poor_gradients_give_finite_parameters(case: Case, driver: Driver, mesh: MeshShape, dtype: torch.dtype) -> None:
    """All kinds in one stack, so that none may spoil its neighbours; states have no NaN, measuring raises nothing."""
    parameters = [Parameter(kind, (10, 7)) for kind in [*KINDS, "good"]]
    gradient = poor_gradients(parameters)
    outcome = train(driver, mesh, case.rule, parameters, gradient, steps=3, dtype=dtype, measure=True)
    for trained in outcome.results:
        bad = [name for name, value in trained.parameters.items() if not value.isfinite().all()]
        assert not bad, f"not finite: {', '.join(bad)}"
        for name, value in trained.parameters.items():
            assert torch.equal(value, outcome.results[0].parameters[name]), f"{name}: replicas differ"
        for x in trained.shards:
            assert x.dtype == dtype
            assert not isinstance(driver, Cohort) or torch.equal(x[:1].expand_as(x), x), "replicas differ"
    assert [path for path, value in bits(outcome) if isinstance(value, Tensor) and value.isnan().any()] == []
    # where single precision overflows in squares, a diagnostic may say so
    unknown = [(row["matrix"], key) for row in outcome.observations for key in row if not known(row[key])]
    assert not unknown or dtype == torch.float32, unknown


def known(value: Any) -> bool:
    return isinstance(value, str) or bool(torch.as_tensor(value).isfinite().all())


@over_cases()
def test_a_matrix_does_not_depend_on_its_neighbours(case: Case) -> None:
    """Neither on their number nor on what they hold."""
    mesh, few = MeshShape(2, 2), [Parameter("good", (10, 7))]
    many = [Parameter(kind, (10, 7)) for kind in ["rank_one", "tiny", "good", "huge", "zero"]]
    alone, among = (train(Cohort(), mesh, case.rule, ps, poor_gradients(ps), steps=3).results[0] for ps in (few, many))
    torch.testing.assert_close(among.parameters["good"], alone.parameters["good"], rtol=0, atol=1e-10)


def thin(rule: Rule) -> Rule:
    """The rule at rank 1, where it has a rank: more does not fit into a vector."""
    return rule.model_copy(update={"rank": 1}) if getattr(rule, "rank", None) else rule


@in_both_precisions
@over_cases()
def test_single_rows_and_columns(case: Case, driver: Driver, mesh: MeshShape, dtype: torch.dtype) -> None:
    """1 x n and m x 1, of which the first leaves all shards but one empty."""
    parameters = [Parameter(kind, shape) for shape in ((1, 8), (8, 1), (1, 1)) for kind in ("good", "huge", "zero")]
    parameters = [Parameter(p.name + "'" * (i // 3), p.shape) for i, p in enumerate(parameters)]
    gradient = poor_gradients(parameters)
    outcome = train(driver, mesh, thin(case.rule), parameters, gradient, steps=3, dtype=dtype)
    for trained in outcome.results:
        for p in parameters:
            moved = trained.parameters[p.name] - first_value(p).to(dtype)
            assert moved.isfinite().all(), f"{p.name} {p.shape}"
            assert not p.name.startswith("good") or moved.any(), f"{p.name} {p.shape} does not move"
            assert torch.equal(trained.parameters[p.name], outcome.results[0].parameters[p.name]), "replicas differ"

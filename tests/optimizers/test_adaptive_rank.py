"""Ada-Orth-Dion and AdaDion against dense judges whose ranks really rise and fall, and the laws of card 2."""

from __future__ import annotations

import io
import math
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from simdist.optimizers import AdaDionV1, AdaDionV2, AdaDionV3, AdaOrthDion, Dion, MeshShape, OrthDion, Stack
from simdist.optimizers.adaptive_rank import AdaptiveRank
from simdist.optimizers.rule import Rule
from simdist.program import Worker
from simdist.program.random import normal
from tests.optimizers import judges_adaptive as judges
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
    train,
)

# none of the sides divides by four; "a" grows poor, "b" grows rich, "c" stays, "d" has a stack of its own
PARAMETERS = [Parameter("a", (13, 9)), Parameter("b", (13, 9)), Parameter("c", (13, 9)), Parameter("d", (7, 10))]
STEPS = 7
#: small ranks for small matrices, and a quick controller
SMALL: dict[str, Any] = {"rank_min": 1, "rank_multiple": 1, "step_up": 2, "step_down": 2, "erank_decay": 0.3}
AT_ONCE: dict[str, Any] = {**SMALL, "step_up": None, "step_down": None}

RULES: dict[str, AdaptiveRank] = {
    "ada_orth_dion": AdaOrthDion(lr=0.05, rank=3, gamma=1.2, beta=0.3, **SMALL),
    "code, rank_comp, sorted": AdaOrthDion(
        lr=0.05, rank=4, error_feedback="code", beta=0.8, scale="rank_comp", sort_before_drop=True, **AT_ONCE
    ),
    "colnorm, multiples": AdaOrthDion(
        lr=0.05, rank_fraction=0.5, right_factor="colnorm", beta=0.2, weight_decay=0.1, **{**SMALL, "rank_multiple": 2}
    ),
    "all_to_all": AdaOrthDion(lr=0.05, rank=3, orthonormalization="all_to_all", beta=0.3, **SMALL),
    "factors": AdaOrthDion(lr=0.05, rank=3, beta=0.3, replica_sync="factors", **SMALL),
    "adadion_v1": AdaDionV1(lr=0.05, rank=4, mu=0.1, gamma=1.1, error_target=0.6, replica_sync="factors", **SMALL),
    "adadion_v2": AdaDionV2(lr=0.05, mu=0.2, gamma=1.2, rank_fraction=0.6, **SMALL),
    "adadion_v3": AdaDionV3(lr=0.05, rank=4, beta=0.6, **AT_ONCE),
    "aligned": AdaDionV3(lr=0.05, rank=4, beta=0.6, align_modes=True, sharpness=3.0, sort_before_drop=True, **AT_ONCE),
    "limited": AdaDionV3(lr=0.05, rank=6, gamma=1.05, buffer_limit=1.1, replica_sync="factors", **AT_ONCE),
}


@cache
def gradient(name: str, step: int, worker: int) -> Tensor:
    """A spectrum that decays at a rate of its own for each matrix and step; workers differ by half."""
    shape = {p.name: p.shape for p in PARAMETERS}[name]
    decay = {"a": 0.9 - 0.12 * step, "b": 0.4 + 0.09 * step, "c": 0.7, "d": 0.95 - 0.2 * abs(3 - step)}[name]
    joint, own = normal(shape, 7, f"g/{name}", None, step), normal(shape, 7, f"g/{name}", worker, step)
    turn = torch.linalg.qr(normal((shape[1], shape[1]), 7, f"turn/{name}"))[0]
    spectrum = torch.pow(max(decay, 0.05), torch.arange(shape[1]))
    shaped: Tensor = (joint + 0.5 * own) * spectrum @ turn
    return shaped


def cut(rule: AdaptiveRank) -> judges.Feedback:
    if isinstance(rule, AdaDionV3):
        most = math.inf if rule.buffer_limit is None else rule.buffer_limit
        return judges.Feedback(modes=True, base=rule.beta, sharpness=rule.sharpness, most=most, align=rule.align_modes)
    if isinstance(rule, AdaOrthDion):
        return judges.Feedback(rule.beta if rule.error_feedback == "paper" else 1.0, rule.beta)
    assert isinstance(rule, AdaDionV1 | AdaDionV2)
    return judges.Feedback(1.0, 1 - rule.mu)


def expected(rule: AdaptiveRank, parameter: Parameter, mesh: MeshShape, steps: int = STEPS) -> judges.History:
    m, f = parameter.shape[0], mesh.shards
    if rule.syncs_replicas(parameter.shape, mesh):
        groups = [range(r * f, (r + 1) * f) for r in range(mesh.replicas)]
        grads = [
            [torch.stack([gradient(parameter.name, t, w) for w in group]).mean(0) for group in groups]
            for t in range(steps)
        ]
    else:
        grads = [[mean_gradient(gradient, mesh)(parameter.name, t)] for t in range(steps)]
    first = rule.low_rank(parameter.shape)
    v = normal((m, first), 0, f"V/{parameter.name}")
    if isinstance(rule, AdaDionV1):
        v = v / v.norm(dim=0)
    elif not isinstance(rule, AdaDionV2):
        v = torch.linalg.qr(v)[0]
    control = judges.Controller(
        first,
        rule.rank_cap(parameter.shape),
        rule.gamma,
        rule.erank_decay,
        rule.rounding == "up",
        rule.erank_start == "rank",
        rule.rank_min,
        rule.rank_multiple,
        rule.step_up,
        rule.step_down,
        rule.quality_control,
        target=rule.error_target,
    )
    right = rule.right_factor if isinstance(rule, AdaOrthDion) else "colnorm"
    return judges.adaptive(
        first_value(parameter),
        grads,
        v,
        parameter.name,
        control,
        cut(rule),
        lr=rule.lr,
        weight_decay=rule.weight_decay,
        right_factor=right,
        scale=rule.scale,
        growth=rule.growth,
        sort_before_drop=rule.sort_before_drop,
    )


def traces(outcome: Outcome) -> dict[str, list[int]]:
    """The logged r_t of each step."""
    return {p.name: [int(row["rank"]) for row in outcome.observations if row["matrix"] == p.name] for p in PARAMETERS}


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("name", RULES)
def test_agrees_with_the_dense_judge(mesh: MeshShape, name: str) -> None:
    rule = RULES[name]
    histories = {p.name: expected(rule, p, mesh) for p in PARAMETERS}
    # the laws of test_laws.py hold both drivers to the same; here one is enough for most variants
    for driver in DRIVERS if name in ("ada_orth_dion", "adadion_v1", "aligned") else DRIVERS[1:]:
        outcome = train(driver, mesh, rule, PARAMETERS, gradient, steps=STEPS)
        for trained in outcome.results:
            for parameter in PARAMETERS:
                got = trained.parameters[parameter.name]
                torch.testing.assert_close(got, histories[parameter.name].x, rtol=0, atol=1e-10)
                assert torch.equal(got, outcome.results[0].parameters[parameter.name]), "replicas differ"
            for state, assignment in zip(trained.states, trained.assignments, strict=True):
                check_ranks(driver, state, outcome.results[0], assignment.stack, histories)


def check_ranks(driver: Driver, state: Any, first: Any, stack: Stack, histories: dict[str, judges.History]) -> None:
    """Card 2, test 3: all workers hold the same ranks; columns beyond them, dummies and padding rows are zeros."""
    theirs = next(s for s, a in zip(first.states, first.assignments, strict=True) if a.stack == stack)
    for field in ("rank", "erank", "error", "step"):
        assert torch.equal(getattr(state, field), getattr(theirs, field)), field
    ranks = state.rank.flatten().tolist()
    for i, rank in enumerate(ranks):
        assert not state.basis[..., i, :, rank:].any()
        if i < len(stack.names):
            basis = histories[stack.names[i]].basis
            assert basis is not None
            assert rank == basis.shape[1]
        else:
            assert rank == 0
    assert state.basis.shape[-1] == max(ranks)
    if isinstance(driver, Cohort):
        for name, i in zip(stack.names, range(stack.count), strict=False):
            whole = state.basis[0, :, i].flatten(0, 1)
            torch.testing.assert_close(whole[: stack.shape[0], : ranks[i]], histories[name].basis, rtol=0, atol=1e-9)
            assert not whole[stack.shape[0] :].any()


@pytest.mark.parametrize("name", RULES)
def test_logged_ranks_are_those_of_the_judge(name: str) -> None:
    mesh, rule = MeshShape(2, 2), RULES[name]
    outcome = train(Cohort(), mesh, rule, PARAMETERS, gradient, steps=STEPS, measure=True)
    histories = {p.name: expected(rule, p, mesh) for p in PARAMETERS}
    assert traces(outcome) == {name: history.ranks for name, history in histories.items()}


def test_the_judges_ranks_rise_and_fall_and_differ_within_a_stack() -> None:
    """Else the test above would not say much."""
    for name, rule in RULES.items():
        ranks = {p.name: expected(rule, p, MeshShape(1, 4)).ranks for p in PARAMETERS}
        steps = [b - a for trace in ranks.values() for a, b in pairwise(trace)]
        assert max(steps) > 0, name
        assert min(steps) < 0, name
        assert any(len({ranks[p][t] for p in "abc"}) > 1 for t in range(STEPS)), name


def test_version_three_follows_persistence_and_its_limit() -> None:
    """The judged runs are not those in which every share is the same, nor those in which the limit never holds."""
    shares = torch.cat([torch.cat(expected(RULES["adadion_v3"], p, MESHES[0]).betas) for p in PARAMETERS])
    assert shares.std() > 0.01
    with_limit = expected(RULES["limited"], PARAMETERS[0], MESHES[0]).x
    without = expected(RULES["limited"].model_copy(update={"buffer_limit": None}), PARAMETERS[0], MESHES[0]).x
    assert (with_limit - without).norm() > 0.01


class Resumed(Rule):
    """A rule whose state is saved to bytes and read back before every step."""

    name: str = "resumed"
    inner: Rule

    def multiple(self, mesh: MeshShape) -> int:
        return self.inner.multiple(mesh)

    def syncs_replicas(self, shape: tuple[int, ...], mesh: MeshShape) -> bool:
        return self.inner.syncs_replicas(shape, mesh)

    def init(self, stack: Stack, x: Tensor, worker: Worker) -> Any:
        return self.inner.init(stack, x, worker)

    async def update(
        self, stack: Stack, x: Tensor, grad: Tensor, state: Any, lr: float, worker: Worker
    ) -> tuple[Tensor, Any]:
        file = io.BytesIO()
        torch.save(state._asdict(), file)
        file.seek(0)
        return await self.inner.update(stack, x, grad, type(state)(**torch.load(file)), lr, worker)


@pytest.mark.parametrize("name", ["ada_orth_dion", "adadion_v1", "aligned"])
def test_ranks_survive_saving(name: str) -> None:
    """Card 2, test 3: nothing that matters is outside the state."""
    mesh, rule = MeshShape(2, 2), RULES[name]
    resumed = Resumed(lr=rule.lr, inner=rule)
    one, other = (
        train(Coroutines(), mesh, r, PARAMETERS, gradient, steps=STEPS, measure=True) for r in (rule, resumed)
    )
    assert traces(one) == traces(other)
    for parameter in PARAMETERS:
        assert torch.equal(one.results[0].parameters[parameter.name], other.results[0].parameters[parameter.name])


FIXED: list[tuple[AdaptiveRank, Rule]] = [
    (AdaOrthDion(lr=0.1, rank=5, gamma=1e9, rank_multiple=1, rank_max=5, beta=0.8), OrthDion(lr=0.1, rank=5, beta=0.8)),
    (AdaDionV2(lr=0.1, rank=5, gamma=1e9, rank_multiple=1, rank_max=5, mu=0.9), Dion(lr=0.1, rank=5, mu=0.9)),
]


@pytest.mark.parametrize("driver", DRIVERS, ids=lambda d: d.name)
@pytest.mark.parametrize("mesh", [MeshShape(1, 1), MeshShape(1, 4), MeshShape(2, 4), MeshShape(4, 1)], ids=str)
@pytest.mark.parametrize(("adaptive", "fixed"), FIXED, ids=["orth_dion", "dion"])
def test_a_huge_gamma_is_the_fixed_rank_rule(
    driver: Driver, mesh: MeshShape, adaptive: AdaptiveRank, fixed: Rule
) -> None:
    """Card 2, test 1: the same numbers and the same bytes, to the last bit."""
    one, other = (train(driver, mesh, rule, PARAMETERS[:3], gradient) for rule in (adaptive, fixed))
    for name, value in one.results[0].parameters.items():
        assert torch.equal(value, other.results[0].parameters[name])
    assert one.transfers == other.transfers
    assert one.flops == other.flops


def test_a_huge_gamma_ends_at_the_cap_by_allowed_steps() -> None:
    rule = AdaOrthDion(lr=0.1, rank=2, gamma=1e9, rank_multiple=1, rank_min=1, step_up=2, rank_max_fraction=0.7)
    outcome = train(Coroutines(), MeshShape(1, 2), rule, PARAMETERS, gradient, measure=True)
    assert traces(outcome) == {name: [2, 4, 6, 7, 7] for name in "abc"} | {"d": [2, 4, 5, 5, 5]}


@pytest.mark.parametrize("rule", [AdaOrthDion, AdaDionV1, AdaDionV2, AdaDionV3], ids=lambda r: r.__name__)
@pytest.mark.parametrize("mesh", [MeshShape(1, 1), MeshShape(2, 4)], ids=str)
@pytest.mark.parametrize("count", [1, 3])
def test_equal_singular_values_are_counted(rule: type[AdaptiveRank], mesh: MeshShape, count: int) -> None:
    """Card 2, test 2: M with k equal singular values has effective rank k, and the rank goes there with gamma 1."""
    u, v = (torch.linalg.qr(normal((side, count), 0, f"factor{side}"))[0] for side in (13, 9))
    more = {"quality_control": False} if rule is AdaDionV1 else {}
    settings = {**AT_ONCE, "erank_decay": 0.0, "rank_max_fraction": 1.0}
    built = rule(lr=0.1, rank=6, gamma=1.0, **settings, **more)
    outcome = train(Coroutines(), mesh, built, PARAMETERS[:1], lambda *_: 3.0 * u @ v.T, steps=2, measure=True)
    assert [float(row["effective_rank"]) for row in outcome.observations] == pytest.approx([count, count], abs=1e-6)
    assert traces(outcome)["a"] == [6, count]

"""NuMuon: its judges with both kernels, its limits, and its traffic (card 7); the kernels' own laws are in linalg."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from simdist.optimizers import MeshShape, Muon, NuMuon
from simdist.optimizers.numuon import KrylovSettings
from simdist.optimizers.rank_schedule import RankSchedule, pairs_of
from simdist.optimizers.spectral import update_scale
from simdist.program.random import normal
from tests.optimizers import judges_muon
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
FALLING = RankSchedule(shape="piecewise", start=0.6, pieces=((2, 0.3),))
LOW = RankSchedule(shape="piecewise", start=0.4, pieces=((2, 0.2),))
RULES = {
    "svd": NuMuon(lr=0.1, weight_decay=0.2, mu=0.8, rank_schedule=FALLING, scale="rank_comp"),
    "gather": NuMuon(lr=0.1, mu=0.8, rank_schedule=FALLING, form="gather", nesterov=True),
    # two blocks of three columns, then of two: short of the seven dimensions there are
    "krylov": NuMuon(lr=0.1, mu=0.8, rank_schedule=LOW, krylov=KrylovSettings(iterations=1, oversampling=0)),
    "warm": NuMuon(
        lr=0.1, mu=0.8, rank_schedule=FALLING, krylov=KrylovSettings(iterations=0, oversampling=1, warm_start=True)
    ),
    "warm gather": NuMuon(
        lr=0.1, mu=0.8, krylov=KrylovSettings(iterations=0, oversampling=1, warm_start=True), form="gather"
    ),
}


class JudgedPairs:
    """The pairs of one matrix in the course of a run: exact, from fresh Gaussian blocks, or from the last basis."""

    def __init__(self, rule: NuMuon, parameter: Parameter) -> None:
        self.rule, self.parameter = rule, parameter
        self.warm: torch.Tensor | None = None

    def __call__(self, m: torch.Tensor, k: int, step: int) -> torch.Tensor:
        krylov = self.rule.krylov
        if krylov is None:
            return judges_muon.top_pairs(m, k)
        width = min(k + krylov.oversampling, *m.shape)
        start = normal((max(m.shape), width), 0, f"krylov/{self.parameter.name}", step=step)
        if krylov.warm_start and self.warm is not None:
            start = self.warm[:, :width]
        if krylov.warm_start:
            assert krylov.iterations == 0
            a = m if m.shape[0] <= m.shape[1] else m.T
            q = torch.linalg.qr(a @ start).Q
            self.warm = torch.linalg.svd(q.T @ a, full_matrices=False).Vh.T
        return judges_muon.krylov_pairs(m, k, start, krylov.iterations)


@pytest.mark.parametrize("driver", DRIVERS, ids=lambda d: d.name)
@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("kind", RULES)
def test_agrees_with_the_dense_judge(driver: Driver, mesh: MeshShape, kind: str) -> None:
    rule = RULES[kind]
    outcome = train(driver, mesh, rule, PARAMETERS, random_gradient(PARAMETERS), steps=4)
    mean = mean_gradient(random_gradient(PARAMETERS), mesh)
    for parameter in PARAMETERS:
        m, n = parameter.shape
        expected = judges_muon.numuon(
            first_value(parameter),
            [mean(parameter.name, step) for step in range(4)],
            JudgedPairs(rule, parameter),
            lr=0.1,
            weight_decay=rule.weight_decay,
            mu=0.8,
            nesterov=rule.nesterov,
            ranks=[pairs_of(rule.rank_schedule.at(step), m, n) for step in range(4)],
            scale=lambda k, m=m, n=n: update_scale(rule.scale, m, n, k),
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


def parameters_after(rule: Muon | NuMuon, mesh: MeshShape, steps: int = 3) -> dict[str, torch.Tensor]:
    return train(Coroutines(), mesh, rule, PARAMETERS, random_gradient(PARAMETERS), steps=steps).results[0].parameters


@pytest.mark.parametrize("krylov", [None, KrylovSettings(iterations=2), KrylovSettings(warm_start=True)], ids=str)
def test_all_pairs_make_it_muon_with_the_exact_kernel(krylov: KrylovSettings | None) -> None:
    same = {"lr": 0.1, "mu": 0.8, "nesterov": False, "scale": "rms"}
    mesh = MeshShape(1, 2)
    muon = parameters_after(Muon(**same, kernel="svd"), mesh)
    numuon = parameters_after(NuMuon(**same, rank_schedule=RankSchedule(start=1.0), krylov=krylov), mesh)
    for name, value in muon.items():
        torch.testing.assert_close(numuon[name], value, rtol=0, atol=1e-10)


@pytest.mark.parametrize("k", [1, 3])
def test_an_update_has_k_unit_singular_values(k: int) -> None:
    rule = NuMuon(lr=0.5, rank_schedule=RankSchedule(start=k / 7), scale="none")
    moved = first_value(PARAMETERS[0]) - parameters_after(rule, MeshShape(1, 4), steps=1)["a"]
    values = torch.linalg.svdvals(moved / 0.5)
    torch.testing.assert_close(values, (torch.arange(7) < k).to(values), rtol=0, atol=1e-10)


def test_krylov_nears_the_exact_rule_with_iterations() -> None:
    mesh, rank = MeshShape(1, 2), RankSchedule(start=0.4)
    exact = parameters_after(NuMuon(lr=0.1, rank_schedule=rank), mesh, steps=1)["a"]
    apart = []
    for iterations in (0, 1, 2):
        krylov = KrylovSettings(iterations=iterations, oversampling=0)
        got = parameters_after(NuMuon(lr=0.1, rank_schedule=rank, krylov=krylov), mesh, steps=1)["a"]
        apart.append(float((got - exact).norm()))
    assert apart[0] > apart[1] > apart[2]
    # three blocks of three columns span all seven dimensions
    assert apart[2] < 1e-10


def test_a_warm_start_gains_on_a_slowly_moving_momentum() -> None:
    """One fixed gradient: blocks that start from the last subspace close in on the leading pairs, fresh ones do not."""
    rank, parameter = RankSchedule(start=0.3), Parameter("a", (12, 10))
    fixed = normal(parameter.shape, 0, "fixed")

    def run(krylov: KrylovSettings | None) -> list[torch.Tensor]:
        rule = NuMuon(lr=0.1, rank_schedule=rank, krylov=krylov)
        values = [first_value(parameter)]
        for steps in (7, 8):
            trained = train(Coroutines(), MeshShape(1, 1), rule, [parameter], lambda *_: fixed, steps=steps)
            values.append(trained.results[0].parameters["a"])
        return values

    exact = run(None)
    last = exact[2] - exact[1]
    errors = {}
    for warm in (False, True):
        values = run(KrylovSettings(iterations=0, oversampling=2, warm_start=warm))
        errors[warm] = float((values[2] - values[1] - last).norm())
    assert errors[True] < 0.3 * errors[False]


@pytest.mark.parametrize("form", ["owner", "gather"])
@pytest.mark.parametrize("mesh", [MeshShape(1, 4), MeshShape(2, 4), MeshShape(4, 1)], ids=str)
def test_sends_what_muon_sends_whatever_the_kernel(mesh: MeshShape, form: str) -> None:
    krylov = KrylovSettings(warm_start=True)
    muon, svd, warm = (
        train(Cohort(), mesh, rule, PARAMETERS, random_gradient(PARAMETERS), steps=2).sent(factors=2)
        for rule in (Muon(lr=0.1, form=form), NuMuon(lr=0.1, form=form), NuMuon(lr=0.1, form=form, krylov=krylov))
    )
    assert svd == warm == muon
    assert (muon > 0) == (form == "owner" or mesh.shards > 1)


def test_owners_share_the_work() -> None:
    parameters = [Parameter(f"p{i}", (8, 8)) for i in range(4)]
    gradient = random_gradient(parameters)
    for krylov in (None, KrylovSettings()):
        owner, gather = (
            train(Coroutines(), MeshShape(1, 4), NuMuon(lr=0.1, form=form, krylov=krylov), parameters, gradient).flops
            for form in ("owner", "gather")
        )
        assert gather == 4 * owner > 0


def test_zero_gradients_leave_parameters_alone() -> None:
    zero = random_gradient(PARAMETERS, scale=0.0)
    for krylov in (None, KrylovSettings(warm_start=True)):
        trained = train(Cohort(), MeshShape(2, 2), NuMuon(lr=0.1, krylov=krylov), PARAMETERS, zero).results[0]
        for parameter in PARAMETERS:
            assert torch.equal(trained.parameters[parameter.name], first_value(parameter))


def test_schedules() -> None:
    cosine = RankSchedule(shape="cosine", start=0.8, final=0.2, steps=4)
    assert [round(cosine.at(step), 6) for step in (0, 2, 4, 9)] == [0.8, 0.5, 0.2, 0.2]
    assert cosine.at(1) - cosine.at(0) == pytest.approx(cosine.at(4) - cosine.at(3))
    pieces = RankSchedule(shape="piecewise", start=0.25, pieces=((2, 0.5), (4, 0.125)))
    assert [pieces.at(step) for step in range(6)] == [0.25, 0.25, 0.5, 0.5, 0.125, 0.125]
    assert (pieces.rises, cosine.rises, FALLING.rises) == (True, False, False)
    # k / min(m, n) gives k back for every k
    assert all(pairs_of(k / side, side, 99) == k for side in range(1, 60) for k in range(1, side + 1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shape": "cosine", "final": 0.5}, "write shape=cosine"),
        ({"final": 0.5, "steps": 3}, "neither otherwise"),
        ({"shape": "piecewise"}, "got 0 pieces"),
        ({"pieces": ((1, 0.5),)}, "got 1 pieces for the shape constant"),
        ({"shape": "piecewise", "pieces": ((3, 0.5), (3, 0.2))}, "expected rising steps"),
        ({"start": 0.0}, "a fraction above 0"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RankSchedule(**settings)


@pytest.mark.parametrize(
    "rising",
    [
        RankSchedule(shape="piecewise", start=0.5, pieces=((2, 0.25), (3, 0.4))),
        RankSchedule(shape="cosine", start=0.2, final=0.5, steps=9),
    ],
    ids=lambda schedule: schedule.shape,
)
def test_a_warm_block_cannot_grow(rising: RankSchedule) -> None:
    with pytest.raises(ValidationError, match="write warm_start=false"):
        NuMuon(lr=0.1, rank_schedule=rising, krylov=KrylovSettings(warm_start=True))


def test_settings_survive_a_round_trip() -> None:
    for rule in RULES.values():
        assert NuMuon.model_validate(rule.model_dump()) == rule
        assert NuMuon.model_validate_json(rule.model_dump_json()) == rule

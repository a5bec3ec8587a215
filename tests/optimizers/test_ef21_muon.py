"""EF21-Muon against a dense judge and Muon: estimates, what is sent for them, and what is not."""

from __future__ import annotations

from math import ceil
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from simdist.errors import InputError
from simdist.linalg.newton_schulz import newton_schulz
from simdist.optimizers import Assignment, EF21Muon, MeshShape, Muon, stacks
from simdist.optimizers.spectral import update_scale
from simdist.program import Worker
from simdist.program.random import normal
from tests.optimizers import judges_compressed as judges
from tests.optimizers.byte_forms import muon_owner
from tests.optimizers.harness import (
    DRIVERS,
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
from tests.optimizers.test_engines import Real

PARAMETERS = [Parameter("a", (10, 7)), Parameter("b", (10, 7)), Parameter("c", (10, 7)), Parameter("d", (6, 9))]
GRADIENT = random_gradient(PARAMETERS)
STEPS = 4
TOPK = "topk(fraction=0.3, values=fp64)"
RULES = {
    "topk": EF21Muon(lr=0.1, codec=TOPK, mu=0.8),
    "signs by owners": EF21Muon(lr=0.1, codec="sign", exchange="codec", weight_decay=0.2),
    "rank": EF21Muon(lr=0.1, rank=2, codec="fp64", form="gather"),
    "dense start": EF21Muon(lr=0.1, codec="sign", start="dense", scale="rms"),
    "server": EF21Muon(lr=0.1, codec=TOPK, server="topk(fraction=0.2, values=fp64)", weight_decay=0.2),
}


def judged(rule: EF21Muon, parameter: Parameter, mesh: MeshShape) -> Tensor:
    (m, n), shards = parameter.shape, range(mesh.shards)

    def compressor() -> judges.Compressor:
        if rule.rank:
            return judges.PowerStep(normal((n, rule.rank), 0, f"ef21_muon/Q/{parameter.name}"))
        plain = judges.signs if rule.codec == "sign" else judges.topk(0.3)
        slices = mesh.replicas if rule.exchange == "codec" else 1
        return lambda x: judges.in_slices(x, slices, plain)

    def orthogonal(x: Tensor) -> Tensor:
        return newton_schulz(x, rule.coefficients, rule.ns_steps, None)

    return judges.ef21_muon(
        first_value(parameter),
        [judges.per_replica(GRADIENT, parameter.name, step, mesh) for step in range(STEPS)],
        orthogonal,
        [[compressor() for _ in shards] for _ in range(mesh.replicas)],
        [judges.topk(0.2) for _ in shards] if rule.server else None,
        lr=rule.lr,
        weight_decay=rule.weight_decay,
        mu=rule.mu,
        scale=update_scale(rule.scale, m, n, 1),
        dense=rule.start == "dense",
    )


@pytest.mark.parametrize(("driver", "mesh"), EVERYWHERE, ids=str)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_agrees_with_the_dense_judge(driver: Driver, mesh: MeshShape, rule: EF21Muon) -> None:
    for trained in train(driver, mesh, rule, PARAMETERS, GRADIENT, steps=STEPS).results:
        for parameter in PARAMETERS:
            got = trained.parameters[parameter.name]
            torch.testing.assert_close(got, judged(rule, parameter, mesh), rtol=0, atol=1e-10)


LOSSLESS = {
    "fp64": EF21Muon(lr=0.1, codec="fp64"),
    "fp64 summed": EF21Muon(lr=0.1, codec="fp64", exchange="codec"),
    "all of topk": EF21Muon(lr=0.1, codec="topk(fraction=1.0, values=fp64)", server="fp64"),
    "dense start": EF21Muon(lr=0.1, codec="fp64", start="dense"),
    "full rank": EF21Muon(lr=0.1, rank=5, codec="fp64"),
    "full rank, anew": EF21Muon(lr=0.1, rank=5, codec="fp64", warm_start=False),
}


@pytest.mark.parametrize("mesh", [MeshShape(1, 1), MeshShape(4, 1), MeshShape(2, 2)], ids=str)
@pytest.mark.parametrize("rule", LOSSLESS.values(), ids=LOSSLESS)
def test_without_loss_it_is_muon(rule: EF21Muon, mesh: MeshShape) -> None:
    """With a running mean for its momentum, and without Nesterov's term."""
    parameters = [Parameter(name, (10, 5)) for name in "abc"]
    gradient = random_gradient(parameters)
    muon = Muon(lr=0.1, nesterov=False)
    one, other = (train(Cohort(), mesh, r, parameters, gradient, steps=STEPS).results[0] for r in (rule, muon))
    for name, value in other.parameters.items():
        torch.testing.assert_close(one.parameters[name], value, rtol=0, atol=1e-9)


def test_mu_is_the_weight_of_the_old_momentum() -> None:
    rule = EF21Muon(lr=0.1, codec="fp64", mu=0.9)
    state = train(Cohort(), MeshShape(1, 1), rule, PARAMETERS[:1], GRADIENT, steps=1).results[0].states[0]
    torch.testing.assert_close(state.momentum[0, 0, 0], 0.1 * GRADIENT("a", 0, 0), rtol=1e-12, atol=0)


def states(rule: EF21Muon, mesh: MeshShape, gradient: Gradient = GRADIENT, steps: int = STEPS) -> list[Any]:
    """The states of the first stack after every step, on a cohort."""
    seen: list[Any] = []

    def before(
        step: int, assignment: Assignment, x: Tensor, grad: Tensor, state: Any, worker: Worker
    ) -> tuple[Tensor, Tensor, Any]:
        if step > 0:
            seen.append(state)
        return x, grad, state

    outcome = train(Cohort(), mesh, rule, PARAMETERS[:3], gradient, steps=steps, before=before)
    return [*seen, outcome.results[0].states[0]]


EXCHANGES = {
    **RULES,
    "natural": EF21Muon(lr=0.1, codec="natural"),
    "natural by owners": EF21Muon(lr=0.1, codec="natural", exchange="codec"),
    "natural factors": EF21Muon(lr=0.1, codec="natural", rank=2),
    "bf16 summed": EF21Muon(lr=0.1, codec="bf16", exchange="codec"),
    "randk": EF21Muon(lr=0.1, codec="randk(fraction=0.3)"),
    "randk summed": EF21Muon(lr=0.1, codec="randk(fraction=0.3)", exchange="codec"),
}


@pytest.mark.parametrize("mesh", [MeshShape(4, 1), MeshShape(2, 4), MeshShape(3, 1)], ids=str)
@pytest.mark.parametrize("rule", EXCHANGES.values(), ids=EXCHANGES)
def test_the_estimate_is_the_mean_of_the_workers_own_at_all_times(rule: EF21Muon, mesh: MeshShape) -> None:
    for state in states(rule, mesh):
        torch.testing.assert_close(state.estimate[0], state.own.mean(0), rtol=0, atol=1e-13)
        assert state.own.shape[0] == mesh.replicas
        assert not torch.equal(state.own[0], state.own[1])
        assert all(torch.equal(one, state.estimate[0]) for one in state.estimate)


@pytest.mark.parametrize("rule", EXCHANGES.values(), ids=EXCHANGES)
def test_drivers_draw_the_same_noise(rule: EF21Muon) -> None:
    """Also where the server's codec draws; and replicas end with the same bits."""
    rule = rule.model_copy(update={"server": "int8"})
    one, other = (train(driver, MeshShape(2, 2), rule, PARAMETERS, GRADIENT, steps=STEPS) for driver in DRIVERS)
    for trained in one.results:
        for name, value in other.results[0].parameters.items():
            torch.testing.assert_close(trained.parameters[name], value, rtol=0, atol=1e-10)
            assert torch.equal(trained.parameters[name], one.results[0].parameters[name])


@pytest.mark.parametrize("rule", [RULES["topk"], RULES["rank"], RULES["signs by owners"]], ids=["topk", "rank", "sign"])
def test_estimates_catch_up_with_gradients_that_stay(rule: EF21Muon) -> None:
    """EF21's point: the differences shrink, so the error of compressing them does."""
    mesh = MeshShape(2, 1)
    errors = []
    for state in states(rule.model_copy(update={"mu": 0.0}), mesh, lambda name, _, w: GRADIENT(name, 0, w), 25):
        errors.append(float((state.own - state.momentum).norm() / state.momentum.norm()))
    assert errors[0] > 0.1
    assert errors[-1] < 0.1 * errors[0]


def test_a_direction_without_difference_is_tried_again() -> None:
    """After gradients of one entry or none, a low rank still takes up whatever comes."""

    def gradient(name: str, step: int, worker: int) -> Tensor:
        full = GRADIENT(name, 2, worker)
        first = torch.zeros_like(full)
        first[1, 2] = 1.0 if step == 1 else 0.0
        return first if step < 2 else full

    rule = EF21Muon(lr=0.1, rank=2, codec="fp64", mu=0.0)
    last = states(rule, MeshShape(2, 1), gradient, 20)[-1]
    assert float((last.own - last.momentum).norm() / last.momentum.norm()) < 1e-2


def test_one_replica_still_compresses_and_sends_nothing_for_it() -> None:
    mesh, muon = MeshShape(1, 4), Muon(lr=0.1, nesterov=False)
    one, other = (train(Cohort(), mesh, r, PARAMETERS, GRADIENT, steps=2) for r in (RULES["topk"], muon))
    assert one.transfers == other.transfers
    assert float((one.results[0].parameters["a"] - other.results[0].parameters["a"]).abs().max()) > 1e-3


def held(shape: tuple[int, ...], mesh: MeshShape) -> tuple[int, int]:
    return ceil(shape[0] / mesh.shards), shape[1]


def gathered_topk(rows: int, n: int, members: int) -> float:
    return (members - 1) * ceil(0.3 * rows * n) * (8 + 4)


def gathered_rank(rows: int, n: int, members: int) -> float:
    return (members - 1) * (rows + n) * 2 * 8


def signs_by_owners(rows: int, n: int, members: int) -> float:
    piece = ceil(rows * n / members)
    return (members - 1) * (ceil(piece / 8) + 4 + 8 * piece)


def bf16_by_owners(rows: int, n: int, members: int) -> float:
    piece = ceil(rows * n / members)
    return (members - 1) * (2 + 8) * piece


def natural(rows: int, n: int, members: int) -> float:
    return (members - 1) * (rows * n + 2)


BYTES = {
    "topk": gathered_topk,
    "server": gathered_topk,
    "rank": gathered_rank,
    "signs by owners": signs_by_owners,
    "bf16 summed": bf16_by_owners,
    "natural": natural,
}


@pytest.mark.parametrize("engine", ["inline", "stacked"])
@pytest.mark.parametrize("mesh", [MeshShape(1, 4), MeshShape(4, 1), MeshShape(2, 2), MeshShape(3, 1)], ids=str)
@pytest.mark.parametrize("name", BYTES)
def test_bytes_are_those_of_the_card(engine: str, mesh: MeshShape, name: str) -> None:
    """Messages of real matrices only, beside what Muon's form sends; in the ledger of the real engines."""
    rule = EXCHANGES[name].model_copy(update={"form": "owner"})
    outcome = train(Real(engine, "fp64", 1), mesh, rule, PARAMETERS, GRADIENT, steps=1)
    sent = sum(t.sent({"": 1}) for t in outcome.transfers if t.purpose == "optimizer")
    expected = sum(BYTES[name](*held(p.shape, mesh), mesh.replicas) for p in PARAMETERS)
    # that form counts four bytes a number
    expected += 2 * (muon_owner(10, 7, 3, mesh) + muon_owner(6, 9, 1, mesh))
    assert sent == pytest.approx(expected, rel=1e-12)


def test_labels_say_what_travels() -> None:
    rule = EF21Muon(lr=0.1, rank=2, start="dense")
    outcome = train(Coroutines(), MeshShape(2, 2), rule, PARAMETERS[:1], GRADIENT, steps=2)
    mine = [(t.op, t.axis, t.tensor, t.wire) for t in outcome.transfers if t.purpose == "optimizer"]
    muon = [("AllToAll", "shards", f"a+1 dummies:{part}", "factors") for part in ("momentum", "update")]
    assert mine == [
        ("Reduce", "replicas", "a+1 dummies:start", "packed"),
        *muon,
        ("AllGather", "replicas", "a:P", "packed"),
        ("AllGather", "replicas", "a:Q", "packed"),
        *muon,
    ]


def test_a_followed_model_lags_behind_the_servers() -> None:
    """W - X is bounded by what the codec leaves out of one step after the other, and W is what workers return."""
    rule, mesh = RULES["server"], MeshShape(2, 1)
    trained = train(Cohort(), mesh, rule, PARAMETERS[:3], GRADIENT, steps=STEPS).results[0]
    model, w = trained.states[0].model, trained.shards[0]
    assert model[0, 0, 0].count_nonzero() == 70
    assert 0 < float((model - w).norm()) < float((first_value(PARAMETERS[0]) - model[0, 0, 0]).norm()) * 3
    # without weight decay, what a step of top-k leaves alone stays where it was
    still = rule.model_copy(update={"weight_decay": 0.0})
    after = train(Cohort(), mesh, still, PARAMETERS[:3], GRADIENT, steps=1).results[0].parameters["a"]
    assert int((after != first_value(PARAMETERS[0])).sum()) == ceil(0.2 * 70)


def test_diagnostics_tell_estimate_from_momentum() -> None:
    mesh = MeshShape(2, 2)
    for rule, exact in ((RULES["topk"], False), (LOSSLESS["fp64"], True)):
        outcome = train(Cohort(), mesh, rule, PARAMETERS, GRADIENT, steps=2, measure=True)
        row, state = outcome.observations[len(PARAMETERS)], outcome.results[0].states[0]
        # replicas in front, then shards' rows
        own, momentum = (part[:, :, 0].flatten(1, 2).expand(2, -1, -1) for part in (state.own, state.momentum))
        estimate, wanted = own.mean(0), momentum.mean(0)
        values = {key: float(value) for key, value in row.items() if key != "matrix"}
        assert values["estimate_error"] == pytest.approx(float((estimate - wanted).norm() / wanted.norm()), abs=1e-12)
        assert (values["estimate_error"] < 1e-12) == exact
        assert values["invariant"] < 1e-14
        for key, x in (("condition", estimate), ("condition_exact", wanted)):
            assert values[key] == pytest.approx(float(1 / torch.linalg.cond(x)), rel=1e-9)
        assert values["state_norm"] == pytest.approx(float(estimate.norm()), rel=1e-12)
        assert values["state_drift"] > 0.1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "neither codec nor rank"),
        ({"rank": 2, "exchange": "codec"}, "exchange=gather"),
        ({"codec": "topk", "warm_start": False}, "without a rank"),
        ({"codec": "topk", "nesterov": True}, "nesterov"),
        ({"codec": "topk", "convention": "sum"}, "convention"),
        ({"codec": "topkk"}, "topkk"),
        ({"codec": "topk", "server": "topkk"}, "topkk"),
    ],
)
def test_bad_settings_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises((ValidationError, InputError), match=message):
        EF21Muon(lr=0.1, **given)


def test_a_rank_beyond_a_workers_rows_is_refused() -> None:
    rule = EF21Muon(lr=0.1, rank=3)
    stacks(rule, PARAMETERS, MeshShape(4, 1))
    with pytest.raises(InputError, match=r"'d' a worker holds 2 x 9; expected at most 2"):
        stacks(rule, PARAMETERS, MeshShape(1, 4))

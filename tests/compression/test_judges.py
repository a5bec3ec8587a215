"""Compressed means on the real engines equal those of the dense judges, over replicas, shards, and both."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

from simdist.compression import EF21, Compression, DeMo, ErrorFeedback, MajorityVote, PowerSGD
from simdist.program import MeshShape
from tests.compression import judges
from tests.compression.harness import HSDP, LR, MESHES, SHAPES, feed, random_gradient, tensors
from tests.compression.judges import Group, Judge

STEPS, SEED = 4, 3
Make = Callable[[Group], Judge]


def or_mean(takes: Callable[[Group], bool], make: Make) -> Make:
    return lambda group: make(group) if takes(group) else judges.Mean(group)


def on_replicas(make: Make) -> Make:
    return or_mean(lambda group: group.axis == "replicas", make)


def factored(**settings: Any) -> Make:
    """PowerSGD of rank 2 takes what has two sides and is large enough: the ratio is 0.9 in these tests."""

    def takes(g: Group) -> bool:
        m, n = g.shape[0], g.length // g.shape[0]
        return len(g.shape) > 1 and min(m, n) >= 2 and m * n > 0.9 * (m + n) * 2

    return or_mean(takes, lambda g: judges.PowerSGD(g, 2, **settings))


def ef(codec: judges.C, reduction: str, **settings: Any) -> Make:
    return lambda g: judges.ErrorFeedback(g, codec, reduction, **settings)


def powersgd(**settings: Any) -> PowerSGD:
    return PowerSGD(rank=2, min_rate=0.9, **settings)


TOPK = "topk(k=4, values=fp64)"
CASES: dict[str, tuple[Compression, Make]] = {
    "top-k": (ErrorFeedback(codec=TOPK), ef(judges.topk(4), "gather")),
    "top-k, decay and momentum": (
        ErrorFeedback(codec=TOPK, decay=0.8, momentum=0.7),
        ef(judges.topk(4), "gather", decay=0.8, momentum=0.7),
    ),
    "sign": (ErrorFeedback(codec="sign"), ef(judges.sign, "two_shot")),
    "sign, exact way back": (
        ErrorFeedback(codec="sign", way_back="exact", momentum=0.5),
        ef(judges.sign, "two_shot", way_back="exact", momentum=0.5),
    ),
    "int8": (
        ErrorFeedback(codec="int8(rounding=nearest)"),
        ef(judges.int8_nearest, "two_shot"),
    ),
    "rand-k": (
        ErrorFeedback(codec="randk(k=4, values=fp64)", decay=0.9),
        lambda g: judges.ErrorFeedback(g, judges.randk(4, g.axis, g.name, g.seed), "sum", decay=0.9),
    ),
    "EF21": (EF21(codec=TOPK), lambda g: judges.EF21(g, judges.topk(4), "gather")),
    "EF21, dense start, momentum": (
        EF21(codec=TOPK, start="dense", eta=0.4),
        lambda g: judges.EF21(g, judges.topk(4), "gather", eta=0.4, start="dense"),
    ),
    "EF21 of signs": (
        EF21(codec="sign", eta=0.4),
        lambda g: judges.EF21(g, judges.sign, "two_shot", eta=0.4),
    ),
    "EF21 of rand-k": (
        EF21(codec="randk(k=4, values=fp64)"),
        lambda g: judges.EF21(g, judges.randk(4, g.axis, g.name, g.seed), "sum"),
    ),
    "PowerSGD": (powersgd(), factored()),
    "PowerSGD, sides in turn": (powersgd(alternate=True), factored(alternate=True)),
    "PowerSGD without memory": (powersgd(error_feedback=False), factored(error_feedback=False)),
    "PowerSGD, cold": (powersgd(warm_start=False), factored(warm_start=False)),
    "PowerSGD, late": (powersgd(start=2, alternate=True), factored(start=2, alternate=True)),
    "DeMo": (
        # even: a real row beside a padding row has pairs of equal coefficients, of which rounding would choose one
        DeMo(k=4, chunk=4, values="fp64"),
        on_replicas(lambda g: judges.DeMo(g, 4, 4)),
    ),
    "DeMo, mean over all": (
        DeMo(k=2, chunk=3, values="fp64", index="packed", merge="all", weight="one", decay=0.5),
        on_replicas(lambda g: judges.DeMo(g, 2, 3, decay=0.5, weight="one", merge="all")),
    ),
    "majority vote": (MajorityVote(), judges.MajorityVote),
    "majority vote, no momentum": (MajorityVote(beta=0), lambda g: judges.MajorityVote(g, beta=0.0)),
}


@cache
def outcome(case: str, mesh: MeshShape) -> Any:
    """What the judge says, by step and worker."""
    _, make = CASES[case]
    rate, gradient = (lambda step: LR / step), random_gradient()
    return judges.run_dense(gradient, SHAPES, mesh.replicas, mesh.shards, STEPS, make, rate, SEED)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_engines_agree_with_the_judge(case: str, mesh: MeshShape) -> None:
    method, gradient = CASES[case][0], random_gradient()
    expected = outcome(case, mesh)
    got = feed(method, mesh, gradient, steps=STEPS, seed=SEED)
    stacked = feed(method, mesh, gradient, "stacked", steps=STEPS, seed=SEED)
    assert got.ops == stacked.ops
    for step in range(STEPS):
        for worker in range(mesh.workers):
            for name in SHAPES:
                mine = got.means[step][worker][name]
                torch.testing.assert_close(mine, expected[step][worker][name], rtol=0, atol=1e-10)
                torch.testing.assert_close(stacked.means[step][worker][name], mine, rtol=0, atol=1e-12)
                # replicas hold the same rows, to the bit
                assert torch.equal(mine, got.means[step][worker % mesh.shards][name])
        for mine, theirs in zip(got.memories[step], stacked.memories[step], strict=True):
            assert mine.keys() == theirs.keys()
            for x, y in zip(tensors(mine), tensors(theirs), strict=True):
                torch.testing.assert_close(x, y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_a_cohort_holds_one_mean_for_all_replicas(case: str) -> None:
    """Else its parameters would be stored, and stepped, once for each."""
    mesh = MeshShape(2, 3)
    fed = feed(CASES[case][0], mesh, random_gradient(), "stacked", steps=3)
    (state,) = fed.states
    assert all(mean.shape[:2] == (1, mesh.shards) for mean in state.means.values())


@pytest.mark.parametrize("case", CASES)
def test_judges_tell_the_methods_apart(case: str) -> None:
    """No two judges of the list say the same, so that none could stand in for another."""
    mine, mesh = outcome(case, HSDP), HSDP
    for other in CASES:
        if other > case:
            theirs = outcome(other, mesh)
            assert any(
                float((mine[-1][w][name] - theirs[-1][w][name]).abs().max()) > 1e-6
                for w in range(mesh.workers)
                for name in SHAPES
            ), other

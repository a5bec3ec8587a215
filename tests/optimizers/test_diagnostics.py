"""The diagnostics of card 1 against dense arithmetic, on every kind of mesh."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from simdist.optimizers import Dion, MeshShape, OrthDion
from simdist.optimizers.low_rank import LowRank
from simdist.program.random import normal
from tests.optimizers import judges
from tests.optimizers.harness import (
    DRIVERS,
    MESHES,
    Coroutines,
    Driver,
    Parameter,
    first_value,
    mean_gradient,
    random_gradient,
    train,
)

PARAMETERS = [Parameter("a", (10, 7)), Parameter("b", (10, 7)), Parameter("d", (5, 9))]
NAMES = {
    "matrix",
    "nu",
    "delta",
    "kf_ratio",
    "residual_ratio",
    "reentry",
    "tracking_error",
    "eps_code",
    "eps_paper",
    "gap_ratio",
    "sign_fraction",
    "effective_rank",
    "column_norm_ratio",
    "state_norm",
    "state_drift",
}


def rows_of(driver: Driver, mesh: MeshShape, rule: LowRank, steps: int = 3) -> list[dict[str, Any]]:
    outcome = train(driver, mesh, rule, PARAMETERS, random_gradient(PARAMETERS), steps, measure=True)
    assert not any(t.purpose == "diagnostic" for t in outcome.transfers)
    return [{k: v if k == "matrix" else float(v) for k, v in row.items()} for row in outcome.observations]


def sine(one: Tensor, other: Tensor) -> float:
    """Of the largest principal angle, by the cosines."""
    cosine = torch.linalg.svdvals(one.T @ other)[-1].clamp(max=1)
    return math.sqrt(1 - float(cosine) ** 2)


def dense(parameter: Parameter, mesh: MeshShape, r: int, right_factor: str, beta: float) -> list[dict[str, float]]:
    """What is said of M = G + R with averaged gradients: the effective matrix on every mesh."""
    mean = mean_gradient(random_gradient(PARAMETERS), mesh)
    grads = [mean(parameter.name, step) for step in range(3)]
    trace = judges.orth_dion(
        first_value(parameter),
        grads,
        torch.linalg.qr(normal((parameter.shape[0], r), 0, f"V/{parameter.name}"))[0],
        lr=0.1,
        weight_decay=0,
        scale=1,
        error_feedback="paper",
        beta=beta,
        right_factor=right_factor,
    )
    before = [torch.zeros_like(trace.x), *trace.buffers]
    found = []
    for g, buffer, u, v, after in zip(grads, before, trace.left, trace.right, trace.buffers, strict=False):
        m = g + buffer
        w, d = m @ u, v @ u.T
        values = torch.linalg.svdvals(m)
        ky_fan, nu, inner = float(values[:r].sum()), float(torch.linalg.matrix_norm(d, 2)), float((m * d).sum())
        spaces = [torch.linalg.svd(x)[2][:r].T for x in (m, g)]
        norms = w.norm(dim=0)
        found.append(
            {
                "nu": nu,
                "delta": ky_fan - inner,
                "kf_ratio": inner / (nu * ky_fan),
                "eps_code": sine(u, spaces[0]),
                "eps_paper": sine(*spaces),
                "gap_ratio": float(values[r] / values[r - 1]) if r < len(values) else 0.0,
                "column_norm_ratio": float(norms.max() / norms.min()),
                "sign_fraction": float(((w * v).sum(dim=0) < 0).double().mean()),
                "state_norm": float(after.norm()),
                "residual_ratio": float(after.norm() / g.norm()),
                "reentry": float((buffer @ u).norm() / g.norm()),
                "tracking_error": float((m - w @ u.T).norm() / m.norm()),
            }
        )
    return found


@pytest.mark.parametrize("driver", DRIVERS, ids=lambda d: d.name)
@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize(("rank", "right_factor"), [(2, "qr_pos"), (5, "colnorm")])
def test_diagnostics_are_what_they_say(driver: Driver, mesh: MeshShape, rank: int, right_factor: str) -> None:
    """Rank 2 is compressed on replicas: norms of each replica's own M, R and G are then averages of squares."""
    rule = OrthDion(lr=0.1, rank=rank, right_factor=right_factor, beta=0.7)
    compressed = rule.syncs_replicas((10, 7), mesh)
    rows = rows_of(driver, mesh, rule)
    for parameter in PARAMETERS:
        mine = [row for row in rows if row["matrix"] == parameter.name]
        for row, expected in zip(mine, dense(parameter, mesh, rank, right_factor, 0.7), strict=True):
            assert row.keys() == NAMES
            for name, value in expected.items():
                if compressed and name in ("residual_ratio", "reentry", "tracking_error"):
                    continue
                assert row[name] == pytest.approx(value, rel=1e-6, abs=1e-6 if "eps" in name else 1e-9), name
            assert (row["state_drift"] > 0) == compressed


def test_delta_is_not_negative_at_norm_one_and_the_oracle_leaves_nothing() -> None:
    exact = rows_of(Coroutines(), MeshShape(1, 2), OrthDion(lr=0.1, rank=3, right_factor="exact_svd"))
    for row in exact:
        assert row["delta"] == pytest.approx(0, abs=1e-9)
        assert row["kf_ratio"] == pytest.approx(1, abs=1e-9)
        assert row["eps_code"] == pytest.approx(0, abs=1e-6)
    for rule in (OrthDion(lr=0.1, rank=3), OrthDion(lr=0.1, rank=3, right_factor="polar")):
        for row in rows_of(Coroutines(), MeshShape(1, 2), rule):
            assert row["delta"] > 0
            assert row["kf_ratio"] < 1
            # the first M is G itself
    first = rows_of(Coroutines(), MeshShape(1, 1), OrthDion(lr=0.1, rank=3), steps=1)
    assert all(row["eps_paper"] == pytest.approx(0, abs=1e-6) and row["reentry"] == 0 for row in first)


def test_raw_signs_show_in_delta() -> None:
    """Card 19's signature: the same first W, and a far larger delta, as half of the columns climb."""
    raw, fixed = (
        rows_of(Coroutines(), MeshShape(1, 1), OrthDion(lr=0.1, rank=5, right_factor=name), steps=1)
        for name in ("qr_raw", "qr_pos")
    )
    for row, good in zip(raw, fixed, strict=True):
        assert row["eps_code"] == pytest.approx(good["eps_code"], abs=1e-9)
        assert row["delta"] >= good["delta"] - 1e-9
    assert sum(row["delta"] for row in raw) > 1.5 * sum(row["delta"] for row in fixed)


@pytest.mark.parametrize("rule", [OrthDion(lr=0.1, rank=2), Dion(lr=0.1, rank=2)], ids=lambda r: r.name)
def test_zero_matrices_have_finite_rows(rule: LowRank) -> None:
    zero = random_gradient(PARAMETERS, scale=0.0)
    for mesh in (MeshShape(1, 1), MeshShape(2, 2)):
        rows = train(Coroutines(), mesh, rule, PARAMETERS, zero, steps=2, measure=True).observations
        for row in rows:
            values = {name: float(value) for name, value in row.items() if name != "matrix"}
            assert all(math.isfinite(value) for value in values.values())
            ratios = ("nu", "delta", "kf_ratio", "gap_ratio", "reentry", "column_norm_ratio", "state_drift")
            assert all(values[name] == 0 for name in ratios)

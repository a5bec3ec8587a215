"""Householder, RCQR and Cholesky-QR for the left factor: the same products, the published steps, honest fallbacks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from simdist.linalg.orthonormalize import orthonormalize
from simdist.optimizers import Dion, MeshShape, OrthDion
from simdist.optimizers.left_factor import left_factor_flops, make_left_factor
from simdist.program.random import normal
from tests.optimizers.harness import DRIVERS, Cohort, Driver, Parameter, random_gradient, train

PARAMETERS = [Parameter("a", (10, 7)), Parameter("b", (10, 7)), Parameter("d", (5, 9))]


@pytest.mark.parametrize("how", [{"left_factor": "rcqr"}, {"left_factor": "cqr", "cqr_warmup": 2}], ids=str)
@pytest.mark.parametrize("driver", DRIVERS, ids=lambda d: d.name)
@pytest.mark.parametrize("rank", [2, 5])
def test_products_are_those_of_householder(driver: Driver, rank: int, how: dict[str, Any]) -> None:
    """Card 3: signs of U's columns cancel in U Vbar^T, so parameters and buffers agree on every mesh."""
    for mesh in (MeshShape(1, 1), MeshShape(4, 1), MeshShape(2, 2)):
        for kind in (Dion, OrthDion):
            plain, other = (
                train(driver, mesh, kind(lr=0.05, rank=rank, **more), PARAMETERS, random_gradient(PARAMETERS), steps=3)
                for more in ({}, how)
            )
            one, two = plain.results[0], other.results[0]
            for name, value in one.parameters.items():
                torch.testing.assert_close(two.parameters[name], value, rtol=0, atol=1e-10)
            for state, again in zip(one.states, two.states, strict=True):
                torch.testing.assert_close(again.buffer, state.buffer, rtol=0, atol=1e-9)
            assert plain.transfers == other.transfers


def published(p: Tensor, sketch: Tensor) -> Tensor:
    """RCQR as card 3 writes it."""
    r1 = torch.linalg.qr(sketch @ p)[1]
    p1 = p @ torch.linalg.inv(r1)
    r2 = torch.linalg.cholesky(p1.T @ p1, upper=True)
    return p1 @ torch.linalg.inv(r2)


def test_rcqr_is_the_published_one() -> None:
    p = normal((3, 40, 6), 0, "p")
    sketch = normal((128, 40), 5, "left factor", step=9) / math.sqrt(128)
    got = make_left_factor(p, "rcqr", seed=5, step=9, warmup=0)
    for i in range(3):
        torch.testing.assert_close(got[i], published(p[i], sketch), rtol=0, atol=1e-12)
    # another sketch in every step: the same span, other columns' signs now and then
    signs = [torch.sign((make_left_factor(p, "rcqr", 5, step, 0) * got).sum(dim=-2)).flatten() for step in range(20)]
    assert 0.2 < float((torch.stack(signs) < 0).double().mean()) < 0.8


def test_rcqr_is_plain_qr_where_columns_are_as_many_as_rows() -> None:
    p = normal((2, 6, 6), 0, "p")
    for how in ("rcqr", "cqr"):
        assert torch.equal(make_left_factor(p, how, 0, 0, 0), orthonormalize(p))


def test_cholesky_qr_comes_after_the_warm_up_and_loses_orthogonality_with_the_squared_condition() -> None:
    u, v = (torch.linalg.qr(normal(shape, 1, "p"))[0] for shape in ((30, 4), (4, 4)))
    p = u @ torch.logspace(0, -6, 4, dtype=torch.float64).diag() @ v

    def lost(how: Any, step: int, p: Tensor = p) -> float:
        q = make_left_factor(p[None], how, 0, step, warmup=3)[0]
        return float((q.T @ q - torch.eye(4)).norm())

    assert lost("rcqr", 9) < 1e-12
    assert lost("cqr", 2) == lost("rcqr", 2)
    assert 1e-8 < lost("cqr", 3) < 1e-2
    # a condition that Cholesky cannot take in single precision: RCQR instead
    assert lost("cqr", 3, p.float()) < 1e-5
    assert torch.equal(make_left_factor(p.float(), "cqr", 0, 3, 3), make_left_factor(p.float(), "rcqr", 0, 3, 3))


@pytest.mark.parametrize("how", ["rcqr", "cqr"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_poor_matrices_fall_back_by_themselves(how: Any, dtype: torch.dtype) -> None:
    good = normal((12, 3), 0, "p").to(dtype)
    zero, dependent, padded = torch.zeros_like(good), good.clone(), good.clone()
    dependent[:, 2] = dependent[:, 0] - 2 * dependent[:, 1]
    padded[:, 2] = 0
    nan = torch.full_like(good, torch.nan)
    q = make_left_factor(torch.stack([good, zero, dependent, padded, nan]), how, 0, 0, 0)
    torch.testing.assert_close(q[0], make_left_factor(good[None], how, 0, 0, 0)[0])
    assert not q[1].any()
    torch.testing.assert_close(q[2].T @ q[2], torch.eye(3, dtype=dtype), rtol=0, atol=1e-5)
    assert torch.equal(q[3], orthonormalize(padded))
    assert not q[3][:, 2].any()
    assert q[4].isnan().any()


def test_a_step_books_what_its_left_factor_costs() -> None:
    """One worker, one matrix 30 x 20 at rank 4: Householder, sketched, and Cholesky-QR after the warm-up."""
    parameters = [Parameter("a", (30, 20))]

    def flops(steps: int, **more: Any) -> float:
        rule = Dion(lr=0.1, rank=4, **more)
        return train(Cohort(), MeshShape(1, 1), rule, parameters, random_gradient(parameters), steps=steps).flops

    n, r, k = 20, 4, 128
    householder = 4 * n * r**2 - 4 / 3 * r**3
    cholesky = 3 * n * r**2 + r**3 / 3
    sketched = 2 * k * n * r + 2 * k * r**2 - 2 / 3 * r**3 + n * r**2 + cholesky
    rest = flops(1) - householder
    assert flops(3, left_factor="rcqr") == pytest.approx(3 * (rest + sketched))
    assert flops(3, left_factor="cqr", cqr_warmup=1) == pytest.approx(3 * rest + sketched + 2 * cholesky)
    assert left_factor_flops(4, 4, "rcqr", 0, 0) == left_factor_flops(4, 4, "householder", 0, 0)


def test_owners_draw_the_same_sketch() -> None:
    """Keyed by seed and step alone: U is the same however matrices are dealt out."""
    p = normal((4, 12, 3), 0, "p")
    dealt = [make_left_factor(p[owner : owner + 1], "rcqr", 3, 7, 0) for owner in range(4)]
    torch.testing.assert_close(torch.cat(dealt), make_left_factor(p, "rcqr", 3, 7, 0), rtol=0, atol=1e-14)

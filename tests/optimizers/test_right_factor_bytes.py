"""What each right factor sends, to the byte; card 20's all-to-all column; and what "auto" decides by the data."""

from __future__ import annotations

from math import ceil
from typing import Any

import pytest
import torch
from torch import Tensor

from simdist.optimizers import MeshShape, OrthDion, left_factor, right_factor, sharded_qr
from simdist.program.random import normal
from tests.optimizers.harness import Coroutines, Outcome, Parameter, random_gradient, train
from tests.optimizers.test_bytes import FACTORS, STATISTICS, Lone, one_step, ring, sent

A2A: dict[str, Any] = {"orthonormalization": "all_to_all"}


def beyond_dion(rule: OrthDion, mesh: MeshShape, shape: tuple[int, int], r: int, count: int) -> float:
    """Bytes of the right factor of a stack (dummies included), by card 1 (b); what P, U and W send is not in it."""
    (m, _), shards = shape, mesh.shards
    rows, c = ceil(m / shards), ceil(count / mesh.owners) * mesh.owners
    passes = 2 if rule.gram_passes == 2 else 1
    if rule.orthonormalization == "all_to_all":
        return 2 * ring(shards) * c * rows * r * FACTORS
    if rule.right_factor in ("qr_pos", "polar", "interp"):
        return 2 * ring(shards) * c * passes * r * r * STATISTICS
    assert rule.right_factor == "block_qr"
    assert rule.block is not None
    if rule.signs == "raw":
        return ring(shards) * c * shards * rows * r * FACTORS
    k = min(rule.block, r)
    return 2 * ring(shards) * c * passes * ceil(r / k) * k * k * STATISTICS


def left_and_replicas(mesh: MeshShape, shape: tuple[int, int], r: int, count: int) -> float:
    (m, n), shards, replicas = shape, mesh.shards, mesh.replicas
    rows, c = ceil(m / shards), ceil(count / mesh.owners) * mesh.owners
    compressed = replicas > 1 and (m + n) * r < m * n
    if shards > 1:
        synced = 2 * ring(replicas) * c * (n / shards + rows) * r if compressed else 0
        return (2 * ring(shards) * c * n * r + synced) * FACTORS
    return c * FACTORS * (2 * ring(replicas) * (m + n) * r if compressed else ring(replicas) * n * r)


@pytest.mark.parametrize("mesh", [MeshShape(1, 1), MeshShape(1, 4), MeshShape(4, 1), MeshShape(3, 2)], ids=str)
@pytest.mark.parametrize("r", [2, 5])
@pytest.mark.parametrize(
    "choice",
    [
        {"right_factor": "polar"},
        {"right_factor": "interp", "tau": 0.5, "gram_passes": 1},
        {"right_factor": "block_qr", "block": 2},
        {"right_factor": "block_qr", "block": 3, "gram_passes": 1},
        {"right_factor": "block_qr", "block": 2, "signs": "raw"},
        A2A,
        {"right_factor": "polar", **A2A},
    ],
    ids=str,
)
def test_right_factors_send_their_closed_forms(mesh: MeshShape, r: int, choice: dict[str, Any]) -> None:
    rule = OrthDion(lr=0.1, rank=r, **choice)
    for count in (1, 6):
        got = sent(one_step(rule, mesh, (10, 7), count))
        expected = left_and_replicas(mesh, (10, 7), r, count) + beyond_dion(rule, mesh, (10, 7), r, count)
        assert got == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize("mesh", [MeshShape(1, 4), MeshShape(2, 4), MeshShape(4, 1)], ids=str)
def test_the_oracle_gathers_whole_matrices_and_never_compresses_replicas(mesh: MeshShape, count: int) -> None:
    m, n, r = 10, 7, 2
    rows, c, shards = ceil(m / mesh.shards), ceil(count / mesh.owners) * mesh.owners, mesh.shards
    everyone, owners = (
        one_step(OrthDion(lr=0.1, rank=r, right_factor="exact_svd", **form), mesh, (m, n), count) for form in ({}, A2A)
    )
    assert sent(everyone) == pytest.approx(ring(shards) * c * shards * rows * n * FACTORS)
    if shards > 1:
        expected = ring(shards) * c * (rows * n + n * r + rows * r) * FACTORS
    else:
        expected = ring(mesh.replicas) * c * (m + n) * r * FACTORS
    assert sent(owners) == pytest.approx(expected)
    replicas = [t for t in everyone.transfers if t.purpose == "grad_reduce" and t.axis == "replicas"]
    assert len(replicas) == (mesh.replicas > 1)


@pytest.mark.parametrize(
    ("m", "n", "r", "total"),
    [(768, 768, 384, 1161216), (768, 768, 96, 290304), (2048, 768, 192, 688128), (4096, 4096, 512, 8257536)],
)
def test_all_to_all_gives_the_golden_numbers_of_card_20(m: int, n: int, r: int, total: int) -> None:
    """F = 8: a stack of eight matrices, divided by eight. The forms are held to the rules above."""
    rule, mesh = OrthDion(lr=0.1, rank=r, **A2A), MeshShape(1, 8)
    form = left_and_replicas(mesh, (m, n), r, 8) + beyond_dion(rule, mesh, (m, n), r, 8)
    assert form / 8 == total


def test_a_real_rule_sends_the_golden_numbers_of_card_20(monkeypatch: pytest.MonkeyPatch) -> None:
    m, n, r = 768, 768, 96
    # what is sent does not depend on what a kernel answers, and these are slow
    monkeypatch.setattr(left_factor, "orthonormalize", lambda p: p)
    kept = torch.ones((), dtype=torch.bool)
    monkeypatch.setattr(sharded_qr, "positive_qr", lambda w, noise: right_factor.PositiveQR(w, w, kept))
    parameters, constant = [Parameter(f"p{i}", (m, n)) for i in range(8)], torch.ones(m, n)
    rule, mesh = OrthDion(lr=0.1, rank=r, **A2A), MeshShape(1, 8)
    outcome = train(Lone(), mesh, rule, parameters, lambda *_: constant, steps=1, dtype=torch.float32)
    assert sent(outcome) / 8 == 290304


def parts(outcome: Outcome) -> list[str]:
    return [t.tensor.split(":")[1] for t in outcome.transfers if t.purpose == "optimizer"]


def with_condition(condition: float) -> Tensor:
    """A 40 x 9 matrix of nearly dependent columns: singular values from 1 to 1/condition."""
    u, v = (torch.linalg.qr(normal(shape, 4, "condition"))[0] for shape in ((40, 9), (9, 9)))
    return u @ torch.logspace(0, -torch.tensor(condition).log10(), 9, dtype=torch.float64).diag() @ v


def aligned(g: Tensor, **choice: Any) -> OrthDion:
    """A rule whose P is the identity's columns, and U therefore too, so that W has the condition of G.

    From a random V, U comes out as triangular beside G's singular vectors: W is then graded, which scaling repairs.
    """

    class Aligned(OrthDion):
        def start(self, gaussian: Tensor) -> Tensor:
            return torch.linalg.pinv(g).mT

    return Aligned(lr=0.1, rank=9, **choice)


class Rounded(Coroutines):
    """Statistics travel in single precision."""

    def answer(self, mesh: MeshShape, requests: Any) -> list[Any]:
        got = super().answer(mesh, requests)
        return [x.float().double() for x in got] if requests[0].label.wire == "statistics" else got


@pytest.mark.parametrize(
    ("condition", "expected"),
    [(3.0, ["gram"]), (300.0, ["gram", "gram again"]), (1e7, ["gram", "W"])],
)
def test_auto_decides_by_the_condition_of_the_gram_matrix(condition: float, expected: list[str]) -> None:
    """With W's own precision in double and the Gram's in single; whatever it decides, Vbar is orthonormal."""
    g = with_condition(condition)
    parameters = [Parameter("a", (40, 9)), Parameter("b", (40, 9))]

    rule = aligned(g, gram_passes="auto")

    def gradient(name: str, step: int, worker: int) -> Tensor:
        return g if name == "a" else normal((40, 9), 8, "well conditioned")

    for mesh in (MeshShape(1, 4), MeshShape(2, 2)):
        outcome = train(Rounded(), mesh, rule, parameters, gradient, steps=1, measure=True)
        assert parts(outcome) == ["P", "P", *expected]
        rows = [row for row in outcome.observations if row["matrix"] == "a"]
        assert all(abs(float(row["nu"]) - 1) < 1e-5 and float(row["sign_fraction"]) == 0 for row in rows)
        moved = outcome.results[0].parameters["a"]
        assert all(torch.equal(trained.parameters["a"], moved) for trained in outcome.results)


def test_auto_books_what_it_does() -> None:
    """More passes are more operations, and each worker books the same."""
    parameters, g, flops = [Parameter("a", (40, 9))], with_condition(300.0), {}
    for passes in (1, 2, "auto"):
        rule = aligned(g, gram_passes=passes)
        flops[passes] = train(Rounded(), MeshShape(1, 4), rule, parameters, lambda *_: g, steps=1).flops
    assert flops[1] < flops["auto"] == flops[2]


def test_all_to_all_is_cheaper_than_a_gram_pass_when_m_b_is_below_f_r_w() -> None:
    """Card 1 (b), as the bytes of real steps: 2 (F-1)/F^2 m r b against 2 (F-1)/F w r^2."""
    for shape, r, cheaper in (((10, 7), 5, True), ((40, 7), 2, False)):
        gram, owners = (
            sent(one_step(OrthDion(lr=0.1, rank=r, **form), MeshShape(1, 4), shape, 4))
            for form in ({"gram_passes": 1}, A2A)
        )
        assert (owners < gram) == cheaper == (shape[0] * FACTORS < 4 * r * STATISTICS)


def test_parts_are_named() -> None:
    parameters = [Parameter("a", (10, 7))]
    named = {}
    for name, choice in {
        "a2a": A2A,
        "svd": {"right_factor": "exact_svd"},
        "svd a2a": {"right_factor": "exact_svd", **A2A},
        "block": {"right_factor": "block_qr", "block": 2},
    }.items():
        rule = OrthDion(lr=0.1, rank=2, **choice)
        outcome = train(Coroutines(), MeshShape(1, 2), rule, parameters, random_gradient(parameters), steps=1)
        named[name] = parts(outcome)
    assert named == {
        "a2a": ["P", "P", "W", "Vbar"],
        "svd": ["M"],
        "svd a2a": ["M", "U", "Vbar"],
        "block": ["P", "P", "gram", "gram"],
    }

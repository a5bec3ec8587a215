"""Optimizer traffic equals the closed forms of cards 1, 3 and 5, to the byte."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

import pytest
import torch
from torch import Tensor

from simdist.optimizers import Dion, MeshShape, Muon, OrthDion, left_factor, muon
from simdist.optimizers.rule import Rule
from simdist.program import Worker
from simdist.program.requests import AllGather, Reduce, ReduceScatter
from tests.optimizers.harness import Cohort, Coroutines, Outcome, Parameter, random_gradient, train

FACTORS, STATISTICS = 2, 4  # bytes a number: bf16 factors, fp32 statistics


def ring(k: int) -> float:
    return (k - 1) / k


def one_step(rule: Rule, mesh: MeshShape, shape: tuple[int, int], count: int) -> Outcome:
    parameters = [Parameter(f"p{i}", shape) for i in range(count)]
    return train(Cohort(), mesh, rule, parameters, random_gradient(parameters), steps=1)


def sent(outcome: Outcome, *, purpose: str = "optimizer") -> float:
    return outcome.sent(purpose, factors=FACTORS, statistics=STATISTICS, grads=FACTORS)


def extra_statistics(rule: Rule, r: int) -> int:
    """Numbers of the right factor's all-reduce over shards."""
    if isinstance(rule, OrthDion) and rule.right_factor == "qr_pos":
        return rule.gram_passes * r * r
    return r


def low_rank_formula(rule: Rule, mesh: MeshShape, shape: tuple[int, int], r: int, count: int) -> float:
    """Bytes of a stack of ``count`` matrices, dummies and padding rows included, by card 3's (a), (b), (c)."""
    (m, n), shards, replicas = shape, mesh.shards, mesh.replicas
    rows, c = ceil(m / shards), ceil(count / mesh.owners) * mesh.owners
    compressed = replicas > 1 and (m + n) * r < m * n
    if shards > 1:
        total = 2 * ring(shards) * c * n * r * FACTORS
        total += 2 * ring(shards) * c * extra_statistics(rule, r) * STATISTICS
        if compressed:
            total += 2 * ring(replicas) * c * (n / shards + rows) * r * FACTORS
        return total
    if compressed:
        return 2 * ring(replicas) * c * (m + n) * r * FACTORS
    return ring(replicas) * c * n * r * FACTORS


@pytest.mark.parametrize(
    "mesh", [MeshShape(1, 1), MeshShape(1, 4), MeshShape(4, 1), MeshShape(2, 4), MeshShape(3, 2)], ids=str
)
@pytest.mark.parametrize("count", [1, 4, 6])
@pytest.mark.parametrize(("shape", "r"), [((10, 7), 2), ((10, 7), 5), ((8, 12), 3)])
@pytest.mark.parametrize("kind", ["dion", "orth_dion", "one pass", "colnorm"])
def test_low_rank_rules(mesh: MeshShape, count: int, shape: tuple[int, int], r: int, kind: str) -> None:
    rule: Rule = {
        "dion": Dion(lr=0.1, rank=r),
        "orth_dion": OrthDion(lr=0.1, rank=r),
        "one pass": OrthDion(lr=0.1, rank=r, gram_passes=1),
        "colnorm": OrthDion(lr=0.1, rank=r, right_factor="colnorm"),
    }[kind]
    got = sent(one_step(rule, mesh, shape, count))
    assert got == pytest.approx(low_rank_formula(rule, mesh, shape, r, count), rel=1e-12)


@pytest.mark.parametrize("count", [1, 4, 6])
@pytest.mark.parametrize("mesh", [MeshShape(1, 4), MeshShape(2, 4), MeshShape(4, 1)], ids=str)
def test_muon_forms(mesh: MeshShape, count: int) -> None:
    m, n = 10, 7
    rows, dealt = ceil(m / mesh.shards), ceil(count / mesh.owners) * mesh.owners
    owner, gather = (sent(one_step(Muon(lr=0.1, form=form), mesh, (m, n), count)) for form in ("owner", "gather"))
    if mesh.shards > 1:
        assert owner == pytest.approx(2 * ring(mesh.shards) * dealt * rows * n * FACTORS)
        assert gather == pytest.approx(ring(mesh.shards) * count * mesh.shards * rows * n * FACTORS)
    else:
        assert owner == pytest.approx(ring(mesh.replicas) * dealt * m * n * FACTORS)
        assert gather == 0


def test_raw_qr_gathers_the_right_factor() -> None:
    got = sent(one_step(OrthDion(lr=0.1, rank=2, right_factor="qr_raw"), MeshShape(1, 4), (10, 7), 4))
    assert got == pytest.approx(2 * ring(4) * 4 * 7 * 2 * FACTORS + ring(4) * 4 * 4 * 3 * 2 * FACTORS)


GOLDEN = [
    # m, n, r, gradient reduce-scatter, Dion, Orth-Dion Gram, Muon all-to-all, Muon gather, HSDP full, HSDP low rank
    (768, 768, 384, 1032192, 1034880, 2064384, 258048, 1032192, 147456, None),
    (768, 768, 96, 1032192, 258720, 322560, 258048, 1032192, 147456, 36864),
    (2048, 768, 192, 2752512, 517440, 774144, 688128, 2752512, 393216, 135168),
    (4096, 4096, 512, 29360128, 7343616, 9175040, 7340032, 29360128, 4194304, 1048576),
]


@pytest.mark.parametrize(("m", "n", "r", "base", "dion", "gram", "all_to_all", "gather", "full", "low_rank"), GOLDEN)
def test_closed_forms_give_the_golden_numbers_of_card_20(
    m: int, n: int, r: int, base: int, dion: int, gram: int, all_to_all: int, gather: int, full: int, low_rank: int
) -> None:
    """F = 8, Rp = 2: a stack of eight matrices, divided by eight. The forms are held to the rules above."""
    fsdp, hsdp, shape = MeshShape(1, 8), MeshShape(2, 8), (m, n)
    one_pass = OrthDion(lr=0.1, rank=r, gram_passes=1)
    assert low_rank_formula(Dion(lr=0.1, rank=r), fsdp, shape, r, 8) / 8 == dion
    assert low_rank_formula(one_pass, fsdp, shape, r, 8) / 8 == gram
    assert low_rank_formula(one_pass, hsdp, shape, r, 8) / 8 == gram + (low_rank or 0)
    assert one_pass.syncs_replicas(shape, hsdp) == (low_rank is not None)


class Lone(Coroutines):
    """Worker 0 alone, answered as if all others held the same: for bytes of shapes too big to emulate whole."""

    def workers(self, mesh: MeshShape, seed: int) -> list[Worker]:
        return super().workers(mesh, seed)[:1]

    def answer(self, mesh: MeshShape, requests: Sequence[Any]) -> list[Tensor]:
        (request,) = requests
        x, size = request.tensor, request.axis.size
        if isinstance(request, Reduce):
            return [x]
        if isinstance(request, AllGather):
            return [torch.cat([x] * size, dim=request.dim)]
        if isinstance(request, ReduceScatter):
            return [x.narrow(request.dim, 0, x.shape[request.dim] // size)]
        mine = x.narrow(request.split_dim, 0, x.shape[request.split_dim] // size)
        return [torch.cat([mine] * size, dim=request.concat_dim)]


def test_rules_send_the_golden_numbers_of_card_20(monkeypatch: pytest.MonkeyPatch) -> None:
    m, n, r, base, dion, gram, all_to_all, gather, full, low_rank_ = GOLDEN[1]
    # what is sent does not depend on what a kernel answers, and these are slow
    monkeypatch.setattr(left_factor, "orthonormalize", lambda p: p)
    monkeypatch.setattr(muon, "newton_schulz", lambda x, *_: x)
    parameters, constant = [Parameter(f"p{i}", (m, n)) for i in range(8)], torch.ones(m, n)

    def run(rule: Rule, mesh: MeshShape) -> tuple[float, float]:
        outcome = train(Lone(), mesh, rule, parameters, lambda *_: constant, steps=1, dtype=torch.float32)
        return sent(outcome, purpose="grad_reduce") / 8, sent(outcome) / 8

    one_pass = OrthDion(lr=0.1, rank=r, gram_passes=1)
    assert run(Dion(lr=0.1, rank=r), MeshShape(1, 8)) == (base, dion)
    assert run(one_pass, MeshShape(1, 8)) == (base, gram)
    assert run(one_pass, MeshShape(2, 8)) == (base, gram + low_rank_)
    assert run(Muon(lr=0.1), MeshShape(1, 8)) == (base, all_to_all)
    assert run(Muon(lr=0.1, form="gather"), MeshShape(2, 8)) == (base + full, gather)


def test_labels_say_what_travels() -> None:
    outcome = one_step(OrthDion(lr=0.1, rank=2, gram_passes=1), MeshShape(2, 2), (10, 7), 3)
    mine = [t for t in outcome.transfers if t.purpose == "optimizer"]
    title = "p0+p1+p2+1 dummies"
    assert [(t.op, t.axis, t.tensor, t.wire) for t in mine] == [
        ("ReduceScatter", "shards", f"{title}:P", "factors"),
        ("Reduce", "replicas", f"{title}:P", "factors"),
        ("AllGather", "shards", f"{title}:P", "factors"),
        ("Reduce", "replicas", f"{title}:W", "factors"),
        ("Reduce", "shards", f"{title}:gram", "statistics"),
    ]

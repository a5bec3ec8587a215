"""Which gradients are compressed on which axis, and that all others go the plain way, to the bit and byte."""

from __future__ import annotations

from math import ceil, prod
from typing import Any

import pytest
import torch
from torch import Tensor

from simdist.compression import DeMo, ErrorFeedback, Link, MajorityVote, PowerSGD
from simdist.compression.compression import Compression
from simdist.optimizers import AdamW, OrthDion
from simdist.parallelism import Compressions, Layout, Reduction
from simdist.program import MeshShape
from tests.compression.harness import DDP, FSDP, HSDP, MESHES, SHAPES, UNITS, feed, random_gradient

TOPK = ErrorFeedback(codec="topk(k=3)")
#: takes embed and wide, not conv, nor the vector
FACTORED = PowerSGD(rank=1, min_rate=3.0)


class Scaled(Compression):
    """A user's method: the mean, times the axis' size; and ones in padding rows, which must not arrive."""

    name: str = "scaled"

    def init(self, link: Link, x: Tensor) -> tuple[()]:
        return ()

    async def mean(self, x: Tensor, state: Any, link: Link) -> tuple[Tensor, Any]:
        if not link.scatter:
            return await link.axis.sum(x) + 1, state
        dim = -link.dims
        return (await link.axis.reduce_scatter(x, dim)).squeeze(dim) + 1, state


def compressed(reduction: Reduction, axis: str) -> set[str]:
    pieces = (piece for unit in reduction.layout.units for piece in unit.pieces)
    return {piece.name for piece in pieces if reduction.compressed(axis, piece)}


def reduction(mesh: MeshShape, rule: Any, **chosen: Any) -> Reduction:
    return Reduction(Layout(UNITS, rule, mesh), Compressions(**chosen))


def test_tensors_are_taken_as_the_method_says() -> None:
    assert compressed(reduction(DDP, AdamW(lr=0.1), replicas=FACTORED), "replicas") == {"embed", "wide"}
    assert compressed(reduction(DDP, AdamW(lr=0.1), replicas=TOPK), "replicas") == set(SHAPES)
    assert not compressed(reduction(DDP, AdamW(lr=0.1)), "replicas")


def test_over_shards_the_whole_matrix_decides_over_replicas_its_rows() -> None:
    """PowerSGD's factors are of the matrix that one exchange is about."""
    both = reduction(MeshShape(2, 3), AdamW(lr=0.1), shards=FACTORED, replicas=FACTORED)
    assert compressed(both, "shards") == {"embed", "wide"}
    # 4 x 6 and 2 x 9: factors would save less than the rate asked for
    assert not compressed(both, "replicas")


def test_replicas_synced_by_factors_are_left_alone() -> None:
    dion = OrthDion(lr=0.1, rank=1)
    layout = reduction(HSDP, dion, replicas=TOPK, shards=TOPK)
    assert compressed(layout, "replicas") == set(SHAPES) - {"wide"}
    assert compressed(layout, "shards") == set(SHAPES)


@pytest.mark.parametrize("mesh", [MeshShape(1, 1), DDP, FSDP], ids=str)
def test_nothing_is_compressed_on_an_axis_of_size_one(mesh: MeshShape) -> None:
    both = reduction(mesh, AdamW(lr=0.1), replicas=TOPK, shards=TOPK)
    assert compressed(both, "replicas") == (set(SHAPES) if mesh.replicas > 1 else set())
    assert compressed(both, "shards") == (set(SHAPES) if mesh.shards > 1 else set())


@pytest.mark.parametrize("engine", ["inline", "stacked"])
@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("axis", ["replicas", "shards"])
def test_what_is_not_taken_goes_the_plain_way(mesh: MeshShape, axis: str, engine: str) -> None:
    chosen = Compressions(**{axis: FACTORED})
    fed = feed(chosen, mesh, random_gradient(), engine, steps=2)
    plain = feed(None, mesh, random_gradient(), engine, steps=2)
    taken = compressed(Reduction(Layout(UNITS, AdamW(lr=0.1), mesh), chosen), axis)
    for mine, theirs in zip(fed.means[-1], plain.means[-1], strict=True):
        for name in SHAPES:
            same = torch.equal(mine[name], theirs[name])
            assert same == (name not in taken)
    # the rest of a unit is one buffer still
    rest = [op for op in fed.collectives if op.tensor == "unit" and op.axis == axis]
    for unit, op in zip(UNITS, rest, strict=False):
        specs = [spec for spec in unit.params if spec.name not in taken]
        rows = {spec.name: ceil(spec.shape[0] / mesh.shards) * prod(spec.shape[1:]) for spec in specs}
        assert op.payload_bytes == 8 * sum(rows.values()) * (mesh.shards if axis == "shards" else 1)
    assert len(rest) == (2 if mesh.size(axis) > 1 else 0)


@pytest.mark.parametrize("engine", ["inline", "stacked"])
@pytest.mark.parametrize("mesh", [*MESHES, MeshShape(2, 3)], ids=str)
def test_shards_come_first_then_replicas(mesh: MeshShape, engine: str) -> None:
    """By a method that says what it was given: n times the mean, plus one, and zeros in padding rows."""
    fed = feed(Compressions(Scaled(), Scaled()), mesh, random_gradient(), engine, steps=1)
    for name, shape in SHAPES.items():
        total = torch.stack([random_gradient()(name, 1, worker) for worker in range(mesh.workers)]).sum(0)
        ones = (mesh.replicas if mesh.shards > 1 else 0) + (1 if mesh.replicas > 1 else 0)
        rows = ceil(shape[0] / mesh.shards)
        expected = torch.zeros(rows * mesh.shards, *shape[1:], dtype=torch.float64)
        expected[: shape[0]] = total + ones
        for worker in range(mesh.workers):
            first = worker % mesh.shards * rows
            torch.testing.assert_close(fed.means[0][worker][name], expected[first : first + rows], rtol=0, atol=1e-12)


def test_links_say_which_numbers_are_real() -> None:
    seen: dict[tuple[str, int, str], Tensor | None] = {}

    class Watching(Scaled):
        async def mean(self, x: Tensor, state: Any, link: Link) -> tuple[Tensor, Any]:
            assert link.worker.index is not None
            seen[link.axis.name, link.worker.index, link.name] = link.real
            assert (link.step, link.lr) == (1, 0.25)
            assert link.numel == x.numel()
            return await super().mean(x, state, link)

    feed(Compressions(Watching(), Watching()), HSDP, random_gradient(), steps=1)
    # 7 entries and 5 rows of 6 in two shards; the others divide
    assert seen["shards", 0, "embed"] is None
    whole = seen["shards", 3, "gain"]
    assert whole is not None
    assert whole.tolist() == [[True] * 4, [True, True, True, False]]
    assert seen["replicas", 0, "conv"].tolist() == [True] * 18
    assert seen["replicas", 3, "conv"].tolist() == [True] * 12 + [False] * 6


def test_every_worker_rounds_by_noise_of_its_own() -> None:
    """Also where groups of an axis stand side by side: their errors must not be alike, or means keep them."""
    same = random_gradient()
    method = ErrorFeedback(codec="int4(bucket=64)")
    fed = feed(Compressions(shards=method), HSDP, lambda name, step, worker: same(name, step, 0), steps=1)
    errors = [memories["shards/embed"].error for memories in fed.memories[0]]
    for i, error in enumerate(errors):
        assert not any(torch.equal(error, other) for other in errors[:i])


def test_methods_for_one_axis_are_refused_on_the_other() -> None:
    with pytest.raises(ValueError, match="got 'demo', which is defined for replicas only"):
        DeMo().check("shards")
    DeMo().check("replicas")
    MajorityVote().check("shards")

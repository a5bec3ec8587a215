"""Layout: cutting parameters into shards and back loses nothing, for rows that divide and rows that do not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import ceil, prod
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from simdist.communication.trace import CollectiveOp
from simdist.errors import InputError
from simdist.execution.engine import LocalEngine
from simdist.execution.wiring import Wiring
from simdist.optimizers import AdamW, Muon, OrthDion, Rule
from simdist.parallelism import Layout
from simdist.parallelism.layout import Piece
from simdist.program import MeshShape, Worker
from simdist.program.program import LockstepProgram
from simdist.workloads.workload import ParamSpec, Unit

#: uneven rows, vectors, a convolution's four dimensions, and in the last shards fewer rows than in the first, or none
UNITS = (
    Unit("root", (ParamSpec("embed", (11, 3), "embedding"), ParamSpec("gain", (5,), "vector")), 1.0, 2.0, root=True),
    Unit("a", (ParamSpec("a.w", (7, 6), "matrix"), ParamSpec("a.b", (7,), "vector")), 1.0, 2.0),
    Unit("b", (ParamSpec("b.w", (7, 6), "matrix"), ParamSpec("conv", (5, 2, 3, 3), "vector")), 1.0, 2.0),
)
SPECS = [spec for unit in UNITS for spec in unit.params]
MESHES = [MeshShape(1, 1), MeshShape(1, 4), MeshShape(3, 1), MeshShape(2, 3), MeshShape(2, 5), MeshShape(1, 13)]
WIRING = Wiring.from_names(dict.fromkeys(("params", "grads", "factors", "statistics"), "fp64"))
RULES: list[Rule] = [AdamW(lr=0.1), Muon(lr=0.1), OrthDion(lr=0.1, rank=1)]


def full(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {spec.name: torch.randn(spec.shape, generator=generator, dtype=torch.float64) for spec in SPECS}


def gradient(worker: int) -> dict[str, Tensor]:
    return full(100 + worker)


class Once(LockstepProgram):
    def __init__(self, ask: Callable[[Worker], Any]) -> None:
        self.ask = ask

    async def start(self, worker: Worker) -> Any:
        return None

    async def step(self, worker: Worker, state: Any, step: int) -> tuple[Any, dict[str, Any]]:
        return await self.ask(worker), {}

    async def parameters(self, worker: Worker, state: Any) -> dict[str, Tensor]:
        return {}


def inline(ask: Callable[[Worker], Any], mesh: MeshShape) -> tuple[list[Any], list[CollectiveOp]]:
    with LocalEngine.inline(Once(ask), mesh, WIRING, 0) as engine:
        (outcome,) = engine.steps(1, 1)
        return list(engine.states), [op for wave in outcome.ops for op in wave if isinstance(op, CollectiveOp)]


def stacked(ask: Callable[[Worker], Any], mesh: MeshShape) -> Any:
    with LocalEngine.stacked(Once(ask), mesh, WIRING, 0) as engine:
        list(engine.steps(1, 1))
        return engine.states[0]


def sharded_and_gathered(layout: Layout) -> Callable[[Worker], Any]:
    async def ask(worker: Worker) -> dict[str, Tensor]:
        local = layout.unstack(layout.shard(full(), worker))
        found: dict[str, Tensor] = {}
        for unit in layout.units:
            found |= await layout.gather(unit, local, worker)
        return found

    return ask


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_sharding_and_gathering_is_the_identity(mesh: MeshShape, rule: Rule) -> None:
    ask = sharded_and_gathered(Layout(UNITS, rule, mesh))
    for found in inline(ask, mesh)[0]:
        assert found.keys() == full().keys()
        assert all(torch.equal(found[name], x) for name, x in full().items())
    for name, x in stacked(ask, mesh).items():
        assert x.shape[:2] == (1, 1)
        assert torch.equal(x[0, 0], full()[name])


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_shards_are_rows_padded_with_zeros(mesh: MeshShape, rule: Rule) -> None:
    layout = Layout(UNITS, rule, mesh)

    async def ask(worker: Worker) -> Any:
        return layout.shard(full(), worker)

    states, _ = inline(ask, mesh)
    for worker, stacks in enumerate(states):
        local = layout.unstack(stacks)
        for spec in SPECS:
            rows = ceil(spec.shape[0] / mesh.shards)
            padded = torch.zeros(mesh.shards * rows, *spec.shape[1:], dtype=torch.float64)
            padded[: spec.shape[0]] = full()[spec.name]
            first = worker % mesh.shards * rows
            assert torch.equal(local[spec.name], padded[first : first + rows])
        for assignment, x in zip(layout.assignments, stacks, strict=True):
            assert x.shape[0] == assignment.stack.count
            assert not x[len(assignment.stack.names) :].any(), "dummies are zero"
    for k, x in enumerate(stacked(ask, mesh)):
        for worker in range(mesh.workers):
            assert torch.equal(x[0, worker % mesh.shards], states[worker][k])


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_stacking_and_unstacking_is_the_identity(mesh: MeshShape) -> None:
    layout = Layout(UNITS, Muon(lr=0.1), mesh)

    async def ask(worker: Worker) -> Any:
        stacks = layout.shard(full(), worker)
        return stacks, layout.stack(layout.unstack(stacks))

    for before, after in inline(ask, mesh)[0]:
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def packed(layout: Layout, buffer: tuple[Piece, ...], worker: int) -> Tensor:
    return layout.pack(buffer, gradient(worker))


def reduced(layout: Layout) -> Callable[[Worker], Any]:
    async def ask(worker: Worker) -> Any:
        found: dict[str, Tensor] = {}
        for unit in layout.units:
            for buffer in unit.buffers:
                each = worker.ops.each(partial(packed, layout, buffer))
                found |= await layout.reduce(buffer, each, worker)
        return found

    return ask


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_gradients_arrive_averaged_and_in_their_rows(mesh: MeshShape, rule: Rule) -> None:
    """Over all workers, or within the shards of a replica where the rule syncs replicas itself."""
    layout = Layout(UNITS, rule, mesh)
    states, _ = inline(reduced(layout), mesh)
    cohort = stacked(reduced(layout), mesh)
    for worker, found in enumerate(states):
        replica, shard = divmod(worker, mesh.shards)
        for spec in SPECS:
            own = rule.rule_for(spec.role).syncs_replicas(spec.shape, mesh)
            assert own == (rule.name == "orth_dion" and spec.role == "matrix" and mesh.replicas > 1)
            those = mesh.group("shards", worker) if own else range(mesh.workers)
            mean = torch.stack([gradient(w)[spec.name] for w in those]).mean(0)
            rows = ceil(spec.shape[0] / mesh.shards)
            padded = torch.zeros(mesh.shards * rows, *spec.shape[1:], dtype=torch.float64)
            padded[: spec.shape[0]] = mean
            expected = padded[shard * rows : (shard + 1) * rows]
            torch.testing.assert_close(found[spec.name], expected, rtol=0, atol=1e-14)
            x = cohort[spec.name]
            assert x.shape[0] == (mesh.replicas if own else 1)
            torch.testing.assert_close(x[replica % x.shape[0], shard], expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_one_buffer_travels_per_unit_with_its_padding(mesh: MeshShape) -> None:
    layout = Layout(UNITS, AdamW(lr=0.1), mesh)

    def padded(unit: Unit) -> int:
        return sum(mesh.shards * ceil(spec.shape[0] / mesh.shards) * prod(spec.shape[1:]) for spec in unit.params)

    expected = [8 * padded(unit) for unit in UNITS]
    _, ops = inline(sharded_and_gathered(layout), mesh)
    assert [op.payload_bytes for op in ops] == (expected if mesh.shards > 1 else [])
    _, ops = inline(reduced(layout), mesh)
    scatters = [op.payload_bytes for op in ops if op.axis == "shards"]
    sums = [op.payload_bytes for op in ops if op.axis == "replicas"]
    assert scatters == (expected if mesh.shards > 1 else [])
    assert sums == ([size // mesh.shards for size in expected] if mesh.replicas > 1 else [])


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 20), st.lists(st.integers(1, 4), max_size=3), st.integers(1, 6), st.booleans())
def test_chunks_join_to_the_whole(rows: int, rest: list[int], shards: int, leading: bool) -> None:
    spec = ParamSpec("x", (rows, *rest), "vector")
    layout = Layout([Unit("u", (spec,), 0.0, 0.0)], AdamW(lr=0.1), MeshShape(1, shards))
    ((piece,),) = (unit.pieces for unit in layout.units)
    x = torch.randn((2, 1, *spec.shape) if leading else spec.shape)
    chunks = piece.chunks(x, shards)
    assert chunks.shape == (*x.shape[: x.ndim - len(spec.shape)], shards, piece.size)
    assert chunks.abs().sum() == pytest.approx(float(x.abs().sum()), rel=1e-5)
    assert torch.equal(piece.whole(chunks), x)
    assert piece.local(chunks[..., 0, :]).shape[-len(spec.shape) :] == (ceil(rows / shards), *rest)


@pytest.mark.parametrize(
    ("setting", "expected"), [(None, [False, True, True]), (True, [True] * 3), (False, [False] * 3)]
)
def test_the_root_unit_is_by_default_not_gathered_again(setting: bool | None, expected: list[bool]) -> None:
    layout = Layout(UNITS, AdamW(lr=0.1), MeshShape(1, 2), setting)
    assert [unit.regather for unit in layout.units] == expected


@pytest.mark.parametrize("setting", [None, True, False])
def test_without_shards_nothing_is_gathered_again(setting: bool | None) -> None:
    assert not any(unit.regather for unit in Layout(UNITS, AdamW(lr=0.1), MeshShape(4, 1), setting).units)


def test_scalars_cannot_be_sharded() -> None:
    unit = Unit("u", (ParamSpec("temperature", (), "vector"),), 0.0, 0.0)
    with pytest.raises(InputError, match=r"scalar parameter 'temperature'; expected shape \(1,\)"):
        Layout([unit], AdamW(lr=0.1), MeshShape(1, 2))

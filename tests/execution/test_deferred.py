"""Deferred gradients of a cohort: whichever way they are summed, they are the workers' own gradients."""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from simdist.codecs import codec_named
from simdist.execution import worker_gradients
from simdist.execution.coding import Coder
from simdist.execution.deferred import Deferred, DeferredGradients
from simdist.execution.engine import LocalEngine
from simdist.execution.inline import inline_worker
from simdist.execution.stacked import cohort
from simdist.execution.wiring import Wiring
from simdist.execution.worker_gradients import Sizes
from simdist.program import MeshShape, Worker
from simdist.program.mesh import Label
from simdist.program.program import LockstepProgram
from simdist.program.requests import Reduce
from simdist.program.worker import Use

CASTS = ["fp32", "bf16", "fp16", "fp64"]
MESHES = [MeshShape(1, 4), MeshShape(4, 1), MeshShape(2, 3), MeshShape(1, 1)]
#: float64; joined batches, vmap and loops add in different orders
TOLERANCE = 1e-12
AXES = ("replicas", "shards", "workers")
Params = dict[str, Tensor]


def loss(params: Params, batch: tuple[Tensor, ...]) -> Tensor:
    """Mean over examples; ``idle`` plays no part."""
    x, y = batch
    return (torch.tanh(x @ params["w"]) @ params["v"] - y).square().mean()


def batch(worker: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(worker)
    return (
        torch.randn(5, 3, generator=generator, dtype=torch.float64),
        torch.randn(5, generator=generator, dtype=torch.float64),
    )


def own(key: int) -> Params:
    generator = torch.Generator().manual_seed(1000 + key)
    shapes = {"w": (3, 4), "v": (4,), "idle": (2,)}
    return {k: torch.randn(s, generator=generator, dtype=torch.float64) for k, s in shapes.items()}


def pack(gradients: Params) -> Tensor:
    return torch.cat([gradients["w"].flatten(-2), gradients["v"], gradients["idle"]], -1)


def parameters(mesh: MeshShape, held: str) -> Params:
    """[R or 1, F or 1, ...]: all alike, alike within replicas, or each worker its own."""
    lead = {"alike": (1, 1), "per replica": (mesh.replicas, 1), "own": (mesh.replicas, mesh.shards)}[held]
    rows = [own(key) for key in range(lead[0] * lead[1])]
    return {name: torch.stack([row[name] for row in rows]).unflatten(0, lead) for name in rows[0]}


def single(params: Params, mesh: MeshShape, worker: int) -> Params:
    replica, shard = divmod(worker, mesh.shards)
    return {k: x[replica % x.shape[0], shard % x.shape[1]] for k, x in params.items()}


def deferred(
    mesh: MeshShape, params: Params, chunk: int | None = None, lossy: Any = loss, get: Any = batch
) -> DeferredGradients:
    return DeferredGradients(mesh, lossy, params, get, Sizes(chunk))


def reduce_over(mesh: MeshShape, axis: str, tensor: str = "") -> Reduce:
    """The request of a sum over an axis, without its tensor."""
    return Reduce(getattr(cohort(mesh, 0).mesh, axis), None, mean=False, label=Label("grad_reduce", tensor, "grads"))


def summed_by(value: Deferred, request: Any, codec: str | None) -> tuple[Tensor, int]:
    found = None if codec is None else codec_named(codec)
    return value.summed(request, lambda asked: Coder(found, asked, seed=5, step=1))


def separately(mesh: MeshShape, params: Params) -> tuple[list[Tensor], list[Tensor]]:
    """Every worker's packed gradient and loss, by one backward pass each."""
    found = [
        inline_worker(mesh, worker, 0).ops.gradients(loss, single(params, mesh, worker), batch)
        for worker in range(mesh.workers)
    ]
    return [g.packed(pack) for g in found], [g.loss() for g in found]


def summed(values: list[Tensor], mesh: MeshShape, axis: str) -> Tensor:
    """The sum over every group, with the axis kept at size one."""
    grid = torch.stack(values).unflatten(0, (mesh.replicas, mesh.shards))
    dims = {"replicas": (0,), "shards": (1,), "workers": (0, 1)}[axis]
    total: Tensor = grid.sum(dims, keepdim=True)
    return total


@pytest.mark.parametrize("chunk", [1, 2, None])
@pytest.mark.parametrize("held", ["alike", "per replica", "own"])
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_sums_are_those_of_the_workers_own_gradients(mesh: MeshShape, held: str, chunk: int | None) -> None:
    """By joined batches where a group holds the same parameters and nothing is lost, else by vmap."""
    params = parameters(mesh, held)
    gradients, losses = separately(mesh, params)
    for axis in AXES:
        for codec in (None, *CASTS):
            lazy = deferred(mesh, params, chunk)
            packed, mean = lazy.packed(pack), lazy.loss()
            got, size = summed_by(packed, reduce_over(mesh, axis), codec)
            wired = gradients if codec is None else [codec_named(codec).round_trip(x) for x in gradients]
            # a codec may round the last bits of vmap's and the loop's gradients to different neighbours
            step = 0.0 if codec is None or codec == "fp64" else {"fp32": 1e-6, "fp16": 0.01, "bf16": 0.1}[codec]
            torch.testing.assert_close(got, summed(wired, mesh, axis), rtol=0, atol=max(TOLERANCE, step))
            width = 8 if codec is None else {"fp32": 4, "bf16": 2, "fp16": 2, "fp64": 8}[codec]
            assert size == gradients[0].numel() * width
            total, _ = summed_by(mean, reduce_over(mesh, "workers"), None)
            torch.testing.assert_close(total, summed(losses, mesh, "workers"), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("chunk", [1, 3, None])
@pytest.mark.parametrize("held", ["alike", "per replica", "own"])
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_realized_values_are_the_workers_own(mesh: MeshShape, held: str, chunk: int | None) -> None:
    params = parameters(mesh, held)
    gradients, losses = separately(mesh, params)
    lazy = deferred(mesh, params, chunk)
    packed, mean = lazy.packed(pack), lazy.loss()
    torch.testing.assert_close(packed.realize().flatten(0, 1), torch.stack(gradients), rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(mean.realize().flatten(), torch.stack(losses), rtol=0, atol=TOLERANCE)
    # sums that are asked for afterwards come from what is there
    for axis in AXES:
        torch.testing.assert_close(
            summed_by(packed, reduce_over(mesh, axis), None)[0], summed(gradients, mesh, axis), rtol=0, atol=TOLERANCE
        )
    total, _ = summed_by(mean, reduce_over(mesh, "workers"), None)
    torch.testing.assert_close(total, summed(losses, mesh, "workers"), rtol=0, atol=TOLERANCE)


def test_everything_is_packed_before_the_first_sum() -> None:
    mesh = MeshShape(2, 1)
    lazy = deferred(mesh, parameters(mesh, "alike"))
    summed_by(lazy.packed(pack), reduce_over(mesh, "replicas"), None)
    with pytest.raises(AssertionError, match="before the first sum"):
        lazy.packed(pack)


class Counting:
    """A loss that counts its calls and how many examples each saw."""

    def __init__(self) -> None:
        self.examples: list[int] = []

    def __call__(self, params: Params, batch: tuple[Tensor, ...]) -> Tensor:
        self.examples.append(len(batch[0]))
        return loss(params, batch)


@pytest.mark.parametrize("chunk", [1, 2, 3, 8])
def test_joined_passes_hold_one_gradient_and_at_most_a_chunk_of_batches(chunk: int) -> None:
    mesh, counting = MeshShape(8, 1), Counting()
    live: list[int] = []

    def counted(gradients: Params) -> Tensor:
        live.append(gradients["w"].numel() // 12)
        return pack(gradients)

    packed = deferred(mesh, parameters(mesh, "alike"), chunk, counting).packed(counted)
    summed_by(packed, reduce_over(mesh, "replicas"), "fp64")
    assert counting.examples == [5 * min(chunk, 8 - first) for first in range(0, 8, chunk)]
    assert live == [1]


#: formats of numbers, noise of each member's own, whole messages, sums in a coarse format
LOSSY = ["bf16", "bf16(accumulate=wire)", "int8(bucket=5)", "qsdp(bucket=5)", "sign", "topk(fraction=0.3)", "natural"]


@pytest.mark.parametrize("codec", LOSSY)
@pytest.mark.parametrize("chunk", [1, 2, 3, 8])
def test_lossy_sums_hold_at_most_a_chunk_of_gradients(chunk: int, codec: str) -> None:
    mesh = MeshShape(8, 1)
    live: list[int] = []

    def counted(gradients: Params) -> Tensor:
        live.append(gradients["w"].numel() // 12)
        return pack(gradients)

    request = reduce_over(mesh, "replicas")
    packed = deferred(mesh, parameters(mesh, "alike"), chunk).packed(counted, request)
    summed_by(packed, request, codec)
    assert live == [min(chunk, 8 - first) for first in range(0, 8, chunk)]


@pytest.mark.parametrize("codec", LOSSY)
@pytest.mark.parametrize("kind", ["all-reduce", "reduce-scatter"])
@pytest.mark.parametrize("chunk", [1, 5, None])
def test_chunks_are_encoded_as_all_workers_at_once(chunk: int | None, kind: str, codec: str) -> None:
    """Every worker draws its own noise, and the tree of the sum is the same, whatever the chunks."""
    mesh = MeshShape(2, 6)
    params = parameters(mesh, "per replica")

    def found(use: str | None) -> tuple[Any, Any]:
        """By a sum as it comes, or by all workers' values at once: the cohort's own way with tensors."""

        class Ask(LockstepProgram):
            async def start(self, worker: Worker) -> Any:
                return None

            async def step(self, worker: Worker, state: Any, step: int) -> tuple[Any, dict[str, Any]]:
                shards = worker.labelled("grad_reduce", "unit", "grads").mesh.shards
                scatter = shards.reduce_scatter_request(None, -1, mean=True)
                known: Use = scatter if kind == "reduce-scatter" else shards.mean_request(None)
                value: Any = deferred(mesh, params, chunk).packed(pack, known if use is None else "own")
                if use is not None:
                    value = value.realize()
                if kind == "reduce-scatter":
                    return await shards.reduce_scatter(value, -1, mean=True), {}
                return await shards.mean(value), {}

            async def parameters(self, worker: Worker, state: Any) -> dict[str, Tensor]:
                return {}

        wiring = Wiring.from_names({"grads": codec}, seed=3)
        with LocalEngine.stacked(Ask(), mesh, wiring, 0) as engine:
            (outcome,) = engine.steps(1, 1)
            return engine.states[0], outcome.ops

    (streamed, ops), (whole, expected) = found(None), found("own")
    assert ops == expected
    torch.testing.assert_close(streamed, whole, rtol=0, atol=TOLERANCE)


def test_without_a_chunk_the_engine_bounds_them_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh, counting = MeshShape(8, 1), Counting()
    params = parameters(mesh, "alike")
    # what a forward pass keeps: tanh's result, its product's inputs (the batch's), and the difference that is squared
    kept = Sizes().kept(loss, {k: x[0, 0] for k, x in params.items()}, batch(0))
    assert 5 * 4 * 8 <= kept <= 4 * 5 * 4 * 8
    monkeypatch.setattr(worker_gradients, "VMAP_BYTES", 3 * (kept + 3 * 18 * 8))
    monkeypatch.setattr(worker_gradients, "JOINED_BYTES", 4 * kept)
    live: list[int] = []

    def counted(gradients: Params) -> Tensor:
        live.append(gradients["w"].numel() // 12)
        return pack(gradients)

    request = reduce_over(mesh, "replicas")
    summed_by(deferred(mesh, params).packed(counted), request, "bf16")
    assert live == [3, 3, 2]
    summed_by(deferred(mesh, params, None, counting).packed(pack), request, None)
    assert counting.examples == [5, 20, 20], "the first call measures"


def test_what_nobody_can_ask_for_any_more_is_neither_computed_nor_kept() -> None:
    """A buffer's sum goes when the buffer does: with replicas that differ it is as large as all their gradients."""
    mesh = MeshShape(4, 1)
    packs: list[str] = []

    def noting(name: str, gradients: Params) -> Tensor:
        packs.append(name)
        return gradients[name].flatten()

    request = reduce_over(mesh, "replicas")
    lazy = deferred(mesh, parameters(mesh, "alike"))
    kept, dropped = lazy.packed(partial(noting, "w"), request), lazy.packed(partial(noting, "v"), request)
    del dropped
    total = weakref.ref(summed_by(kept, request, None)[0])
    assert packs == ["w"]
    assert total() is not None
    del kept
    assert total() is None


def test_one_pass_gives_sums_and_every_workers_own() -> None:
    """Dion's replicas keep gradients of their own, while embeddings and norms are averaged."""
    mesh, counting = MeshShape(4, 1), Counting()
    params = parameters(mesh, "alike")
    lazy = deferred(mesh, params, 2, counting)
    request = reduce_over(mesh, "replicas")
    averaged, own_value = lazy.packed(partial(flat, "v"), request), lazy.packed(pack, "own")
    got, _ = summed_by(averaged, request, "fp64")
    values = own_value.realize()
    # one call of the loss under vmap for each chunk
    assert len(counting.examples) == 2
    gradients, _ = separately(mesh, params)
    torch.testing.assert_close(values.flatten(0, 1), torch.stack(gradients), rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(got[0, 0], torch.stack(gradients)[:, 12:16].sum(0), rtol=0, atol=TOLERANCE)


def flat(name: str, gradients: Params) -> Tensor:
    return gradients[name].flatten(-2) if name == "w" else gradients[name]


def test_one_pass_serves_every_buffer() -> None:
    """The units of a model ask one after the other; the gradients are computed once."""
    mesh, counting = MeshShape(2, 2), Counting()
    lazy = deferred(mesh, parameters(mesh, "alike"), 3, counting)
    parts = [lazy.packed(partial(flat, name)) for name in ("w", "v", "idle")]
    mean = lazy.loss()
    for part in parts:
        summed_by(part, reduce_over(mesh, "shards"), "fp64")
    summed_by(mean, reduce_over(mesh, "workers"), None)
    assert len(counting.examples) == mesh.replicas


class Train(LockstepProgram):
    """Gradients through the mesh as a schedule asks for them."""

    async def start(self, worker: Worker) -> Any:
        return None

    async def step(self, worker: Worker, state: Any, step: int) -> tuple[Any, dict[str, Any]]:
        params = {name: worker.ops.alike(x) for name, x in own(0).items()}
        gradients = worker.ops.gradients(loss, params, batch)
        packed, mean = gradients.packed(pack), gradients.loss()
        found = [
            await worker.mesh.shards.reduce_scatter(packed, -1, mean=True),
            await worker.mesh.shards.mean(packed),
            await worker.mesh.replicas.sum(packed),
            await worker.mesh.workers.mean(packed),
            await worker.mesh.workers.reduce_scatter(packed, -1),
            await worker.mesh.shards.all_gather(packed, -1),
        ]
        return [worker.ops.realize(x) for x in found], {"loss": await worker.mesh.measuring().workers.mean(mean)}

    async def parameters(self, worker: Worker, state: Any) -> dict[str, Tensor]:
        return {}


@pytest.mark.parametrize("codec", ["fp64", "fp32"])
@pytest.mark.parametrize("mesh", [MeshShape(1, 3), MeshShape(3, 1), MeshShape(2, 3), MeshShape(3, 2)], ids=str)
def test_collectives_take_deferred_gradients(mesh: MeshShape, codec: str) -> None:
    """18 numbers divide into 2, 3 and 6 chunks."""
    wiring = Wiring.from_names(dict.fromkeys(("params", "grads", "factors", "statistics"), codec))
    found: dict[str, Any] = {}
    for name, make in (("inline", LocalEngine.inline), ("stacked", LocalEngine.stacked)):
        with make(Train(), mesh, wiring, 0) as engine:
            (outcome,) = engine.steps(1, 1)
            found[name] = list(engine.states), outcome
    (inline, one), (stacked, other) = found["inline"], found["stacked"]
    assert other.ops == one.ops
    assert other.report["loss"] == pytest.approx(one.report["loss"], abs=TOLERANCE)
    for k, x in enumerate(stacked[0]):
        everybody = x.expand(mesh.replicas, mesh.shards, *x.shape[2:]).flatten(0, 1)
        for worker in range(mesh.workers):
            torch.testing.assert_close(
                everybody[worker], inline[worker][k], rtol=0, atol=TOLERANCE if codec == "fp64" else 1e-6
            )


def test_a_cohort_of_one_has_gradients_too() -> None:
    worker = cohort(MeshShape(1, 1), 0)
    gradients = worker.ops.gradients(loss, {k: worker.ops.alike(x) for k, x in own(0).items()}, batch)
    packed, mean = gradients.packed(pack), gradients.loss()
    ((expected,), (value,)) = separately(MeshShape(1, 1), parameters(MeshShape(1, 1), "alike"))
    torch.testing.assert_close(worker.ops.realize(packed)[0, 0], expected, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(worker.ops.realize(mean)[0, 0], value, rtol=0, atol=TOLERANCE)

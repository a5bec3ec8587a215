"""The stacked engine answers every collective as one coroutine per worker does, with the same descriptors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from simdist.errors import ProgramError
from simdist.execution.engine import LocalEngine
from simdist.execution.stacked import StackedOps, cohort
from simdist.execution.wiring import Wiring
from simdist.program import MeshShape, Worker, together
from simdist.program.program import LockstepProgram

#: and how far a sum in another order may fall on the other side of a rounding of the wire
CASTS = {"fp64": 0.0, "fp32": 1e-5, "fp16": 0.02, "bf16": 0.15}
MESHES = [MeshShape(1, 4), MeshShape(4, 1), MeshShape(2, 4), MeshShape(3, 2), MeshShape(2, 3)]
AXES = ("replicas", "shards", "workers")
#: sums of replicated values are taken as a product, so the last bits may differ
TOLERANCE = 1e-12

OPS: dict[str, Callable[[Any, Any], Any]] = {
    "sum": lambda axis, x: axis.sum(x),
    "mean": lambda axis, x: axis.mean(x),
    "all_gather rows": lambda axis, x: axis.all_gather(x, -2),
    "all_gather columns": lambda axis, x: axis.all_gather(x, -1),
    "reduce_scatter rows": lambda axis, x: axis.reduce_scatter(x, -2, mean=True),
    "reduce_scatter columns": lambda axis, x: axis.reduce_scatter(x, -1),
    "all_to_all": lambda axis, x: axis.all_to_all(x, split_dim=-1, concat_dim=-2),
    "all_to_all back": lambda axis, x: axis.all_to_all(x, split_dim=-2, concat_dim=-1),
    "broadcast first": lambda axis, x: axis.broadcast(x, 0),
    "broadcast last": lambda axis, x: axis.broadcast(x, axis.size - 1),
    "share": lambda axis, x: at_once(axis.share(x, -1)),
}
#: how a worker's numbers depend on who it is: on a cohort, which leading axes have size one
HELD = ["each its own", "alike on shards", "alike on replicas", "alike everywhere"]


async def at_once(x: Tensor) -> Tensor:
    return x


def values(worker: Worker, mesh: MeshShape, held: str) -> Tensor:
    """[24, 24]; on a cohort with leading axes of size one where all members hold the same."""

    def make(index: int) -> Tensor:
        replica, shard = divmod(index, mesh.shards)
        key = {
            "each its own": index,
            "alike on shards": replica,
            "alike on replicas": 100 + shard,
            "alike everywhere": 1000,
        }[held]
        return torch.randn(24, 24, generator=torch.Generator().manual_seed(key), dtype=torch.float64)

    x = worker.ops.each(make)
    if worker.index is None:
        x = x[:, :1] if held in ("alike on shards", "alike everywhere") else x
        x = x[:1] if held in ("alike on replicas", "alike everywhere") else x
    return x


class Once(LockstepProgram):
    def __init__(self, ask: Callable[[Worker], Any]) -> None:
        self.ask = ask

    async def start(self, worker: Worker) -> Any:
        return None

    async def step(self, worker: Worker, state: Any, step: int) -> tuple[Any, dict[str, Any]]:
        return await self.ask(worker), {}

    async def parameters(self, worker: Worker, state: Any) -> dict[str, Tensor]:
        return {}


def run(name: str, ask: Callable[[Worker], Any], mesh: MeshShape, codec: str = "fp64") -> tuple[list[Any], Any]:
    make = LocalEngine.inline if name == "inline" else LocalEngine.stacked
    wiring = Wiring.from_names(dict.fromkeys(("params", "grads", "factors", "statistics"), codec))
    with make(Once(ask), mesh, wiring, 0) as engine:
        (outcome,) = engine.steps(1, 1)
        return list(engine.states), outcome.ops


def per_worker(x: Tensor, mesh: MeshShape) -> list[Tensor]:
    assert x.shape[0] in (1, mesh.replicas)
    assert x.shape[1] in (1, mesh.shards)
    return list(x.expand(mesh.replicas, mesh.shards, *x.shape[2:]).flatten(0, 1))


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("name", OPS)
def test_each_worker_receives_what_it_does_inline(name: str, axis: str, held: str) -> None:
    if (name, axis) == ("share", "workers"):
        return  # tests/program/test_mesh.py: refused
    for mesh in MESHES:
        for codec in CASTS:

            async def ask(worker: Worker, mesh: MeshShape = mesh) -> Any:
                return await OPS[name](getattr(worker.mesh, axis), values(worker, mesh, held))

            expected, ops = run("inline", ask, mesh, codec)
            (got,), stacked_ops = run("stacked", ask, mesh, codec)
            assert stacked_ops == ops
            for mine, theirs in zip(per_worker(got, mesh), expected, strict=True):
                coarse = CASTS[codec]
                torch.testing.assert_close(mine, theirs, rtol=0, atol=max(TOLERANCE, coarse))


#: codecs that encode messages rather than numbers, or draw noise
CODERS = [
    "bf16(accumulate=wire)",
    "int8",
    "int4(bucket=7, rounding=nearest)",
    "fp8_e4m3",
    "fp8_e5m2(block=50, rounding=stochastic)",
    "qsdp",
    "sign",
    "natural",
    "topk(fraction=0.2)",
    "topk(k=3, chunk=20, index=packed, values=bf16)",
    "randk(fraction=0.2)",
    "randk(fraction=0.2, rescale=True, values=bf16)",
    "sparseloco(k=7, chunk=30)",
]


@pytest.mark.parametrize("codec", CODERS)
@pytest.mark.parametrize("name", OPS)
def test_codecs_of_whole_messages_give_what_they_do_inline(name: str, codec: str) -> None:
    """Noise is keyed by place, so that each worker's message meets its own on both engines."""
    for mesh, held in ((MeshShape(2, 4), "each its own"), (MeshShape(3, 2), "alike everywhere")):
        for axis in ("replicas", "shards") if name == "share" else AXES:

            async def ask(worker: Worker, mesh: MeshShape = mesh, axis: str = axis, held: str = held) -> Any:
                return await OPS[name](getattr(worker.mesh, axis), values(worker, mesh, held))

            expected, ops = run("inline", ask, mesh, codec)
            (got,), stacked_ops = run("stacked", ask, mesh, codec)
            assert stacked_ops == ops
            for mine, theirs in zip(per_worker(got, mesh), expected, strict=True):
                torch.testing.assert_close(mine, theirs, rtol=0, atol=TOLERANCE)


def test_reduced_values_are_held_once() -> None:
    mesh = MeshShape(2, 4)

    async def ask(worker: Worker) -> Any:
        x = values(worker, mesh, "each its own")
        return [(await getattr(worker.mesh, axis).sum(x)).shape[:2] for axis in AXES] + [
            (await worker.mesh.shards.all_gather(x, -1)).shape[:2]
        ]

    ((found,), _) = run("stacked", ask, mesh)
    assert found == [(1, 4), (2, 1), (1, 1), (2, 1)]


def test_waves_keep_their_order() -> None:
    mesh = MeshShape(2, 2)

    async def ask(worker: Worker) -> Any:
        x = values(worker, mesh, "each its own")
        await together(worker.compute(3.0), worker.mesh.shards.sum(x), worker.mesh.replicas.all_gather(x, -1))
        await worker.sleep(0.5)

    _, inline = run("inline", ask, mesh)
    _, stacked = run("stacked", ask, mesh)
    assert stacked == inline
    assert [len(wave) for wave in stacked] == [3, 1]


def test_measurements_are_neither_rounded_nor_booked() -> None:
    mesh = MeshShape(2, 2)

    async def ask(worker: Worker) -> Any:
        return await worker.mesh.measuring().workers.mean(values(worker, mesh, "each its own"))

    expected, _ = run("inline", ask, mesh)
    (got,), ops = run("stacked", ask, mesh, "bf16")
    assert ops == ()
    torch.testing.assert_close(got[0, 0], expected[0], rtol=0, atol=TOLERANCE)


def test_messages_and_uneven_chunks_are_refused_here_too() -> None:
    async def send(worker: Worker) -> None:
        await worker.send(0, torch.zeros(1, 1, 1))

    async def scatter(worker: Worker) -> Any:
        return await worker.mesh.shards.reduce_scatter(torch.zeros(1, 1, 7), -1)

    async def swap(worker: Worker) -> Any:
        return await worker.mesh.shards.all_to_all(torch.zeros(1, 1, 7, 2), split_dim=-2, concat_dim=-1)

    with pytest.raises(ProgramError, match="lockstep = False"):
        run("stacked", send, MeshShape(1, 2))
    for ask in (scatter, swap):
        with pytest.raises(ProgramError, match="does not divide into 2 equal chunks"):
            run("stacked", ask, MeshShape(1, 2))


def test_plain_values_are_the_same_on_all_workers() -> None:
    ops = StackedOps(MeshShape(2, 2), None)
    x = torch.ones(3)
    assert torch.equal(ops.plain({"w": ops.alike(x)})["w"], x)
    with pytest.raises(ProgramError, match="'w' for all workers"):
        ops.plain({"w": torch.ones(2, 1, 3)})


def test_each_worker_of_a_cohort_makes_its_own() -> None:
    made = cohort(MeshShape(2, 3), 0).ops.each(lambda w: torch.tensor([float(w)]))
    assert made.squeeze(-1).tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]


@pytest.mark.parametrize("mesh", [MeshShape(1, 1), MeshShape(2, 2)], ids=str)
def test_evaluation_is_dealt_out_and_adds_up(mesh: MeshShape) -> None:
    """Fewer batches than workers, or more: the shares add up to the mean over the batches."""
    for count in (1, 3, 5):
        batches = [(torch.tensor([float(i)]),) for i in range(count)]

        async def ask(worker: Worker, batches: Any = batches) -> Any:
            params = {"w": worker.ops.alike(torch.tensor([2.0], dtype=torch.float64))}
            share = worker.ops.evaluate(lambda p, batch: (p["w"] * batch[0]).sum(), params, batches)
            return await worker.mesh.measuring().workers.sum(share)

        for engine in ("inline", "stacked"):
            states, _ = run(engine, ask, mesh)
            assert float(states[0].mean()) == pytest.approx(count - 1, rel=1e-12)

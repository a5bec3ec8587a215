"""Collectives over blocks: however the workers are cut into blocks, every bit is that of one block with all of them."""

from __future__ import annotations

import queue
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from simdist.codecs import codec_named, codecs
from simdist.communication.trace import CollectiveOp, WaveOps
from simdist.errors import ProgramError
from simdist.execution.exchange import Alone, Exchange
from simdist.execution.inline import inline_worker
from simdist.execution.lockstep import BlockResolver, LockstepBlock
from simdist.execution.wiring import Wiring
from simdist.program import Label, MeshShape, Worker, together
from simdist.program.program import LockstepProgram
from tests.execution.threads import SECONDS, Threads

MESHES = [MeshShape(1, 4), MeshShape(4, 1), MeshShape(2, 4), MeshShape(3, 2), MeshShape(2, 3), MeshShape(4, 3)]
AXES = ("replicas", "shards", "workers")

Ask = Callable[[Worker], Coroutine[Any, Any, Any]]


def wiring(codec: str) -> Wiring:
    return Wiring.from_names(dict.fromkeys(("params", "grads", "factors", "statistics"), codec))


class One(LockstepProgram):
    """A program of one step: what ``ask`` does."""

    def __init__(self, ask: Ask) -> None:
        self.ask = ask

    async def start(self, worker: Worker) -> Any:
        return None

    async def step(self, worker: Worker, state: Any, step: int) -> tuple[Any, dict[str, Any]]:
        return await self.ask(worker), {}

    async def parameters(self, worker: Worker, state: Any) -> dict[str, Tensor]:
        return {}


def run_block(ask: Ask, mesh: MeshShape, codec: str, exchange: Exchange) -> tuple[list[Any], tuple[WaveOps, ...]]:
    """Return what each local worker ends with, and the descriptors."""
    workers = [inline_worker(mesh, index, 0) for index in exchange.blocks[exchange.me]]
    block = LockstepBlock(One(ask), workers, BlockResolver(mesh, wiring(codec), exchange))
    block.start()
    ops = block.step(1).ops
    return block.states, ops


def run_blocks(
    ask: Ask, mesh: MeshShape, codec: str, blocks: Sequence[range]
) -> tuple[list[Any], list[tuple[WaveOps, ...]]]:
    pipes: dict[tuple[int, int], queue.Queue[Any]] = {
        (a, b): queue.Queue() for a in range(len(blocks)) for b in range(len(blocks)) if a != b
    }
    with ThreadPoolExecutor(len(blocks)) as pool:
        futures = [pool.submit(run_block, ask, mesh, codec, Threads(blocks, me, pipes)) for me in range(len(blocks))]
        done = [future.result(timeout=SECONDS) for future in futures]
    assert all(pipe.empty() for pipe in pipes.values()), "something was sent that nobody waited for"
    return [state for states, _ in done for state in states], [ops for _, ops in done]


def run_alone(ask: Ask, mesh: MeshShape, codec: str = "fp32") -> tuple[list[Any], tuple[WaveOps, ...]]:
    return run_block(ask, mesh, codec, Alone(mesh.workers))


def own(worker: int, *shape: int) -> Tensor:
    """A worker's numbers, of very different sizes, so that another order of summation shows in the bits."""
    generator = torch.Generator().manual_seed(worker)
    return torch.randn(shape, generator=generator) * 10.0 ** (3 * torch.randn(shape, generator=generator))


#: divides into 2, 3, 4, 6, 8 and 12 chunks
SHAPE = (24, 48)


def numbers(worker: Worker) -> Tensor:
    assert worker.index is not None
    return own(worker.index, *SHAPE)


def transposed(worker: Worker) -> Tensor:
    """The same numbers in another layout."""
    return numbers(worker).mT.contiguous().mT


OPS: dict[str, Callable[[Any, Tensor], Any]] = {
    "sum": lambda axis, x: axis.sum(x),
    "mean": lambda axis, x: axis.mean(x),
    "all_gather rows": lambda axis, x: axis.all_gather(x, -2),
    "all_gather columns": lambda axis, x: axis.all_gather(x, -1),
    "reduce_scatter rows": lambda axis, x: axis.reduce_scatter(x, -2, mean=True),
    "reduce_scatter columns": lambda axis, x: axis.reduce_scatter(x, -1),
    "all_to_all": lambda axis, x: axis.all_to_all(x, split_dim=-1, concat_dim=-2),
    "all_to_all in place": lambda axis, x: axis.all_to_all(x, split_dim=-2, concat_dim=-2),
    "broadcast first": lambda axis, x: axis.broadcast(x, 0),
    "broadcast last": lambda axis, x: axis.broadcast(x, axis.size - 1),
}


def one_op(name: str, axis: str, numbers: Callable[[Worker], Tensor] = numbers) -> Ask:
    async def ask(worker: Worker) -> Tensor:
        x = numbers(worker)
        result: Tensor = await OPS[name](getattr(worker.mesh, axis), x)
        # an axis of size one gives back what it was given
        return result.contiguous() if result is x else result

    return ask


def cuts(draw: st.DrawFn, workers: int) -> list[range]:
    edges = [0, *sorted(draw(st.sets(st.integers(1, workers - 1), min_size=1, max_size=5))), workers]
    return [range(a, b) for a, b in pairwise(edges)]


@st.composite
def splits(draw: st.DrawFn) -> tuple[MeshShape, list[range]]:
    """A mesh and any cut of its workers into contiguous blocks, uneven ones too."""
    mesh = draw(st.sampled_from(MESHES))
    return mesh, cuts(draw, mesh.workers)


@pytest.mark.parametrize("name", OPS)
@settings(deadline=None, max_examples=25)
@given(splits(), st.sampled_from(AXES), st.sampled_from(codecs.names()), st.sampled_from([numbers, transposed]))
def test_any_cut_into_blocks_gives_the_same_bits(
    name: str, split: tuple[MeshShape, list[range]], axis: str, codec: str, values: Callable[[Worker], Tensor]
) -> None:
    mesh, blocks = split
    ask = one_op(name, axis, values)
    expected, ops = run_alone(ask, mesh, codec)
    got, all_ops = run_blocks(ask, mesh, codec, blocks)
    assert len(got) == len(expected) == mesh.workers
    for mine, theirs in zip(got, expected, strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)
        # kernels may round differently on another layout
        assert mine.stride() == theirs.stride()
        assert mine.storage_offset() == theirs.storage_offset() == 0
    assert all(booked == ops for booked in all_ops)


@settings(deadline=None, max_examples=10)
@given(splits())
def test_waves_of_many_collectives_find_their_way(split: tuple[MeshShape, list[range]]) -> None:
    """Several collectives on all axes in flight together, twice."""
    mesh, blocks = split

    async def ask(worker: Worker) -> Tensor:
        x = numbers(worker)
        for _ in range(2):
            axes = [worker.mesh.shards, worker.mesh.workers, worker.mesh.replicas]
            found = await together(*(op(axis, x) for axis in axes for op in OPS.values()))
            x = x + sum(part.sum() * k for k, part in enumerate(found))
        return x

    expected, ops = run_alone(ask, mesh)
    got, all_ops = run_blocks(ask, mesh, "fp32", blocks)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert all(booked == ops for booked in all_ops)


def test_replica_groups_keep_their_order_between_blocks() -> None:
    """Blocks 0-2 and 3-5 of a 3 x 2 mesh meet the two columns in opposite orders; tensors must not change places."""
    ask = one_op("sum", "replicas")
    expected, _ = run_alone(ask, MeshShape(3, 2))
    got, _ = run_blocks(ask, MeshShape(3, 2), "fp32", [range(3), range(3, 6)])
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


# -- values and bytes of one block ----------------------------------------------------------------------------------


def expected_of(name: str, mesh: MeshShape, axis: str, worker: int, codec: str) -> Tensor:
    """What a member receives, written down member by member."""
    wire = codec_named(codec).round_trip
    group = list(mesh.group(axis, worker))
    place, size = group.index(worker), len(group)
    values = [wire(own(member, *SHAPE)) for member in group]
    total = values[0].double()
    for value in values[1:]:
        total = total + value.double()
    if "mean" in name or name == "reduce_scatter rows":
        total = total / size
    rows, columns = SHAPE[0] // size, SHAPE[1] // size
    mine = slice(place * rows, (place + 1) * rows), slice(place * columns, (place + 1) * columns)
    found = {
        "sum": lambda: wire(total.float()),
        "mean": lambda: wire(total.float()),
        "all_gather rows": lambda: torch.cat(values, 0),
        "all_gather columns": lambda: torch.cat(values, 1),
        "reduce_scatter rows": lambda: total.float()[mine[0]],
        "reduce_scatter columns": lambda: total.float()[:, mine[1]],
        "all_to_all": lambda: torch.cat([value[:, mine[1]] for value in values], 0),
        "all_to_all in place": lambda: torch.cat([value[mine[0]] for value in values], 0),
        "broadcast first": lambda: values[0],
        "broadcast last": lambda: values[-1],
    }
    return found[name]()


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("name", OPS)
def test_every_member_receives_what_it_should(name: str, axis: str, mesh: MeshShape) -> None:
    size = mesh.size(axis)
    if size == 1:
        return  # tests/program/test_mesh.py: nothing is asked
    for codec, width in (("fp32", 4), ("bf16", 2)):
        got, ops = run_alone(one_op(name, axis), mesh, codec)
        scale = max(own(worker, *SHAPE).abs().max().item() for worker in range(mesh.workers))
        tolerance = scale * (2e-6 if codec == "fp32" else 2e-2)
        for worker, value in enumerate(got):
            expected = expected_of(name, mesh, axis, worker, codec)
            if "sum" in name or "mean" in name or "reduce" in name:
                torch.testing.assert_close(value, expected, rtol=0, atol=tolerance)
            else:
                assert torch.equal(value, expected)
        full = SHAPE[0] * SHAPE[1] * width * (size if "gather" in name else 1)
        kind = {"sum": "all_reduce", "mean": "all_reduce"}.get(name, name.split()[0])
        root = size - 1 if name == "broadcast last" else 0
        assert ops == ((CollectiveOp(kind, axis, "optimizer", "", codec, full, root),),)


def test_sums_are_taken_in_the_runs_precision_not_the_wires() -> None:
    """256 + 1 - 256 in bfloat16 would be 0; the wire rounds contributions and result, not what is between."""
    values = [256.0, 1.0, -256.0, 0.0]

    async def ask(worker: Worker) -> Any:
        assert worker.index is not None
        return await worker.mesh.shards.sum(torch.tensor([values[worker.index]]))

    got, _ = run_alone(ask, MeshShape(1, 4), "bf16")
    assert [x.item() for x in got] == [1.0] * 4


def test_members_share_one_read_only_answer() -> None:
    for name in ("all_gather rows", "sum", "broadcast first"):
        got, _ = run_alone(one_op(name, "shards"), MeshShape(2, 4))
        assert len({id(x) for x in got[:4]}) == len({id(x) for x in got[4:]}) == 1


def test_measurements_are_neither_rounded_nor_booked() -> None:
    async def ask(worker: Worker) -> Any:
        return await worker.mesh.measuring().shards.all_gather(numbers(worker), -1)

    got, ops = run_alone(ask, MeshShape(1, 4), "bf16")
    assert ops == ()
    assert torch.equal(got[0], torch.cat([own(i, *SHAPE) for i in range(4)], -1))


def test_local_requests_are_recorded() -> None:
    async def ask(worker: Worker) -> None:
        await together(worker.compute(5.0, "forward"), worker.sleep(0.25))

    _, ((compute, sleep),) = run_alone(ask, MeshShape(1, 2))
    assert (compute.flops, sleep.seconds) == (5.0, 0.25)  # type: ignore[union-attr]


# -- mistakes of a program ------------------------------------------------------------------------------------------


def refused(ask: Ask, match: str, mesh: MeshShape | None = None) -> None:
    with pytest.raises(ProgramError, match=match):
        run_alone(ask, mesh or MeshShape(2, 2))


@pytest.mark.parametrize("name", ["sum", "all_gather rows", "reduce_scatter rows", "all_to_all", "broadcast first"])
def test_unequal_shapes_name_both_workers(name: str) -> None:
    async def ask(worker: Worker) -> Any:
        axis = worker.mesh.labelled(Label(tensor="odd")).shards
        return await OPS[name](axis, torch.zeros(4, 4 if worker.index != 3 else 8))

    refused(ask, r"worker 0 asked for .* of 'odd' \(4, 4\).* but worker 3 for .*\(4, 8\).*pad uneven shards")


def test_unequal_dtypes_are_refused() -> None:
    async def ask(worker: Worker) -> Any:
        return await worker.mesh.shards.sum(torch.zeros(2, dtype=torch.float64 if worker.index else torch.float32))

    refused(ask, "worker 0 asked .* worker 1 .* equal shapes and dtypes")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("sum", "mean"),
        ("sum", "all_gather rows"),
        ("all_gather rows", "all_gather columns"),
        ("broadcast first", "broadcast last"),
    ],
)
def test_different_wishes_name_both_workers(one: str, other: str) -> None:
    async def ask(worker: Worker) -> Any:
        return await OPS[other if worker.index == 2 else one](worker.mesh.shards, torch.zeros(2, 2))

    refused(ask, r"worker 0 asks for \[.*\], worker 2 for \[.*\].*lockstep = False")


def test_different_axes_labels_and_local_work_are_refused() -> None:
    x = torch.zeros(2)

    async def axes(worker: Worker) -> Any:
        return await (worker.mesh.replicas if worker.index else worker.mesh.shards).sum(x)

    async def labels(worker: Worker) -> Any:
        return await worker.mesh.shards.sum(x, part=str(worker.index))

    async def work(worker: Worker) -> None:
        assert worker.index is not None
        await worker.compute(1.0 + worker.index)

    async def count(worker: Worker) -> Any:
        return await together(*(worker.mesh.shards.sum(x) for _ in range(1 + (worker.index or 0))))

    for ask in (axes, labels, work, count):
        refused(ask, "must ask for the same things: worker 0")


@pytest.mark.parametrize("quitter", [0, 3])
def test_a_worker_that_ends_early_is_named_a_mistake(quitter: int) -> None:
    async def ask(worker: Worker) -> None:
        await worker.mesh.shards.sum(torch.zeros(1))
        if worker.index != quitter:
            await worker.mesh.shards.sum(torch.zeros(1))

    refused(ask, r"1 of 4 workers ended their step while the others still ask for \[all_reduce")


def test_messages_do_not_belong_in_lock_step() -> None:
    async def send(worker: Worker) -> None:
        await worker.send(0, torch.zeros(1))

    async def receive(worker: Worker) -> None:
        await worker.receive()

    refused(send, "asked for Send.*lockstep = False")
    refused(receive, "asked for Receive.*lockstep = False")


def test_chunks_must_be_equal() -> None:
    async def scatter(worker: Worker) -> Any:
        return await worker.mesh.shards.reduce_scatter(torch.zeros(7), -1)

    async def swap(worker: Worker) -> Any:
        return await worker.mesh.shards.all_to_all(torch.zeros(7, 2), split_dim=-2, concat_dim=-1)

    for ask in (scatter, swap):
        refused(ask, "does not divide into 2 equal chunks")


def test_a_program_may_not_use_the_network_before_step_one() -> None:
    class Eager(One):
        async def start(self, worker: Worker) -> Any:
            return await worker.mesh.shards.sum(torch.zeros(1))

    mesh = MeshShape(1, 2)
    workers = [inline_worker(mesh, index, 0) for index in range(2)]

    async def nothing(worker: Worker) -> None:
        return None

    block = LockstepBlock(Eager(nothing), workers, BlockResolver(mesh, wiring("fp32"), Alone(2)))
    with pytest.raises(ProgramError, match=r"start\(\) asked for transfers or compute"):
        block.start()

"""How messages pass their codec: bytes on the wire, sums of what was decoded, and noise that both sides draw."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from simdist.codecs import codec_named
from simdist.communication.plans import Ring
from simdist.communication.semantics import pairwise_sum
from simdist.communication.trace import CollectiveOp
from simdist.execution.coding import Coder, Members
from simdist.execution.engine import LocalEngine
from simdist.execution.inline import inline_worker
from simdist.execution.live_block import LiveBlock, Meeting
from simdist.execution.wiring import Wiring
from simdist.program import Axis, Label, MeshShape, Worker
from simdist.program.program import IrregularProgram, LockstepProgram
from simdist.program.requests import AllGather, AllToAll, Broadcast, Reduce, ReduceScatter

ENGINES = {"inline": LocalEngine.inline, "stacked": LocalEngine.stacked}


class Steps(LockstepProgram):
    """Keeps what ``ask`` returns in every step."""

    def __init__(self, ask: Any) -> None:
        self.ask = ask

    async def start(self, worker: Worker) -> list[Any]:
        return []

    async def step(self, worker: Worker, state: Any, step: int) -> tuple[Any, dict[str, Any]]:
        return [*state, await self.ask(worker)], {}

    async def parameters(self, worker: Worker, state: Any) -> dict[str, Tensor]:
        return {}


def run(engine: str, ask: Any, mesh: MeshShape, codec: str, steps: int = 1) -> tuple[list[list[Any]], Any]:
    """Return, per worker, what it got in every step, and the descriptors of the first."""
    wiring = Wiring.from_names(dict.fromkeys(("params", "grads", "factors", "statistics"), codec), seed=3)
    with ENGINES[engine](Steps(ask), mesh, wiring, 0) as made:
        outcomes = list(made.steps(1, steps))
        if engine == "inline":
            return list(made.states), outcomes[0].ops
        (found,) = made.states
        grids = [x.expand(mesh.replicas, mesh.shards, *x.shape[2:]).flatten(0, 1) for x in found]
        return [[grid[worker] for grid in grids] for worker in range(mesh.workers)], outcomes[0].ops


def own(worker: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(worker), dtype=torch.float64).to(dtype)


def of_each(worker: Worker, *shape: int) -> Any:
    return worker.ops.each(lambda index: own(index, *shape))


# -- bytes ----------------------------------------------------------------------------------------------------------

EIGHT = Axis("shards", 8, 0, lambda x, dim: x, Label(purpose="grad_reduce", tensor="w"))


def sent(codec: str, request: Any) -> float:
    """Bytes that one of eight workers sends in all, by the ring."""
    coder = Coder(codec_named(codec), request)
    if isinstance(request, (Reduce, ReduceScatter)):
        _, size = coder.contribution(request.tensor, Members([0]))
    else:
        cut = coder.slices(request.tensor, 0)
        size = sum(part.numel() * part.element_size() for part in coder.encode(cut, Members([0]), slices=1))
    return sum(Ring().sent(op.op, op.payload_bytes, 8)[0] for op in coder.ops(size))


@pytest.mark.parametrize(
    ("codec", "expected"),
    [
        ("fp32", 7340032),
        ("bf16", 3670016),
        ("int8", 1842176),
        ("int4", 924672),
        ("topk(k=10485)", 587160),
        ("sparseloco", 200872),
        # two halves of packed signs, and a scale per slice
        ("sign", 2 * 7 * (2**20 // 64 + 4)),
        ("randk(k=10488)", 2 * 7 * 10488 * 4 // 8),
    ],
)
def test_golden_bytes_of_an_all_reduce(codec: str, expected: int) -> None:
    """Card 20: 2^20 numbers, eight workers, sent by each."""
    assert sent(codec, Reduce(EIGHT, torch.zeros(1024, 1024), False, EIGHT.label)) == expected


def test_golden_bytes_of_a_reduce_scatter_and_an_all_to_all() -> None:
    """Half of the two shots: every slice has buckets, or a top-k, of its own."""
    x = torch.zeros(1024, 1024)
    scatter, swap = ReduceScatter(EIGHT, x, -2, False, EIGHT.label), AllToAll(EIGHT, x, -1, -2, EIGHT.label)
    for codec, expected in (("int8", 921088), ("sign", 7 * (2**20 // 64 + 4)), ("topk(k=1311)", 7 * 1311 * 8)):
        assert sent(codec, scatter) == sent(codec, swap) == expected


def test_tails_and_padding_are_counted() -> None:
    """13 numbers over 8 workers: slices of 2, with a scale each."""
    assert sent("int8", Reduce(EIGHT, torch.zeros(13), False, EIGHT.label)) == 2 * 7 * (2 + 4)
    assert sent("int4", Reduce(EIGHT, torch.zeros(()), False, EIGHT.label)) == 2 * 7 * (1 + 4)


@pytest.mark.parametrize(
    ("codec", "expected"),
    [
        ("int8", {"Reduce": ["all_to_all", "all_gather"], "ReduceScatter": ["all_to_all"]}),
        ("sign", {"Reduce": ["all_to_all", "all_gather"], "ReduceScatter": ["all_to_all"]}),
        ("topk", {"Reduce": ["all_gather"], "ReduceScatter": ["all_to_all"]}),
        ("randk", {"Reduce": ["all_reduce"], "ReduceScatter": ["reduce_scatter"]}),
        ("bf16", {"Reduce": ["all_reduce"], "ReduceScatter": ["reduce_scatter"]}),
    ],
)
def test_the_ledger_shows_what_really_travels(codec: str, expected: dict[str, list[str]]) -> None:
    x, label = torch.zeros(16, 16), EIGHT.label
    requests = [
        Reduce(EIGHT, x, True, label),
        ReduceScatter(EIGHT, x, -2, True, label),
        AllGather(EIGHT, x, -1, label),
        AllToAll(EIGHT, x, -1, -2, label),
        Broadcast(EIGHT, x, 2, label),
    ]
    expected = {**expected, "AllGather": ["all_gather"], "AllToAll": ["all_to_all"], "Broadcast": ["broadcast"]}
    for request in requests:
        ops = Coder(codec_named(codec), request).ops(640)
        assert [op.op for op in ops] == expected[type(request).__name__]
        assert {(op.axis, op.purpose, op.tensor, op.codec) for op in ops} == {("shards", "grad_reduce", "w", codec)}


@pytest.mark.parametrize("engine", ENGINES)
def test_both_halves_of_a_two_shot_sum_are_booked_in_turn(engine: str) -> None:
    async def ask(worker: Worker) -> Any:
        return await worker.mesh.shards.mean(of_each(worker, 5, 9))

    _, ops = run(engine, ask, MeshShape(2, 4), "int8(bucket=8)")
    # 45 numbers: four slices of 12 bytes and two scales
    size = 4 * (12 + 8)
    expected = [
        CollectiveOp(op, "shards", "optimizer", "", "int8(bucket=8)", size) for op in ("all_to_all", "all_gather")
    ]
    assert [op for wave in ops for op in wave] == expected
    _, ops = run(engine, ask, MeshShape(2, 4), "topk(k=4)")
    assert ops == ((CollectiveOp("all_gather", "shards", "optimizer", "", "topk(k=4)", 4 * 32),),)


# -- sums -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("codec", ["int8(bucket=4, rounding=nearest)", "sign", "fp8_e4m3", "natural(rounding=nearest)"])
def test_two_shots_encode_slices_then_their_sums(engine: str, codec: str) -> None:
    async def ask(worker: Worker) -> Any:
        return await worker.mesh.workers.mean(of_each(worker, 3, 7))

    got, _ = run(engine, ask, MeshShape(2, 2), codec)
    wire = codec_named(codec).round_trip

    def shot(x: Tensor) -> Tensor:
        """21 numbers and three zeros of padding, in slices of six."""
        return wire(pad(x, (0, 3)).unflatten(0, (4, 6)), quiet).flatten()[:21]

    expected = shot(pairwise_sum([shot(own(index, 21)) for index in range(4)]) / 4).reshape(3, 7)
    for (mine,) in got:
        assert torch.equal(mine, expected)


def quiet() -> Any:
    return lambda shape: pytest.fail("nearest rounding draws no noise")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("codec", ["topk(k=4)", "sparseloco(k=3, chunk=9)"])
def test_gathered_payloads_are_summed_by_everybody(engine: str, codec: str) -> None:
    async def ask(worker: Worker) -> Any:
        return await worker.mesh.workers.sum(of_each(worker, 3, 7))

    got, _ = run(engine, ask, MeshShape(2, 2), codec)
    expected = pairwise_sum([codec_named(codec).round_trip(own(index, 21)) for index in range(4)]).reshape(3, 7)
    for (mine,) in got:
        assert torch.equal(mine, expected)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rescale", [False, True])
def test_random_positions_are_summed_over_the_members(engine: str, rescale: bool) -> None:
    async def ask(worker: Worker) -> Any:
        return await worker.mesh.workers.sum(of_each(worker, 5, 8))

    got, _ = run(engine, ask, MeshShape(2, 2), f"randk(k=10, rescale={rescale})", steps=2)
    total = pairwise_sum([own(index, 40) for index in range(4)]).reshape(5, 8)
    masks = []
    for step in (0, 1):
        first = got[0][step]
        masks.append(first != 0)
        assert masks[-1].sum() == 10
        assert all(torch.equal(mine[step], first) for mine in got)
        torch.testing.assert_close(first, total * masks[-1] * (4 if rescale else 1))
    assert not torch.equal(*masks), "positions are drawn anew in every step"


@pytest.mark.parametrize("engine", ENGINES)
def test_sums_in_the_wires_format_round_after_every_addition(engine: str) -> None:
    async def ask(worker: Worker) -> Any:
        return await worker.mesh.shards.sum(of_each(worker, 6, 7))

    in_run, in_wire = (run(engine, ask, MeshShape(1, 6), codec)[0] for codec in ("bf16", "bf16(accumulate=wire)"))
    plain = pairwise_sum([own(index, 42).bfloat16() for index in range(6)]).float().reshape(6, 7)
    exact = pairwise_sum([own(index, 42).bfloat16().float() for index in range(6)]).bfloat16().float()
    for (wide,), (narrow,) in zip(in_run, in_wire, strict=True):
        assert torch.equal(narrow, plain)
        assert torch.equal(wide, exact.reshape(6, 7))
        assert not torch.equal(narrow, wide)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("codec", ["int8", "sign", "topk", "randk", "bf16"])
def test_single_numbers_may_be_asked_for(engine: str, codec: str) -> None:
    async def ask(worker: Worker) -> Any:
        x = worker.ops.each(lambda index: torch.tensor(2.0 ** (index % 2)))
        return torch.stack([await worker.mesh.shards.sum(x), await worker.mesh.shards.broadcast(x, 1)], -1)

    got, _ = run(engine, ask, MeshShape(2, 2), codec)
    for (mine,) in got:
        torch.testing.assert_close(mine, torch.tensor([3.0, 2.0]))


# -- noise ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("codec", ["qsdp(bits=4)", "int4"])
def test_all_ranks_hold_the_same_gathered_weights(engine: str, codec: str) -> None:
    """QSDP: forward and backward of one step see the same weights, and so do all replicas; the next step others."""

    async def ask(worker: Worker) -> Any:
        shard = worker.ops.each(lambda index: own(100 + index % 4, 3, 5))
        layers = [Label("param_gather", layer, "params") for layer in ("0", "0", "1")]
        found = [await worker.mesh.labelled(layer).shards.all_gather(shard, -2) for layer in layers]
        return torch.stack(found, -3)

    got, _ = run(engine, ask, MeshShape(2, 4), codec, steps=2)
    for step in (0, 1):
        forward, backward, other = got[0][step]
        assert torch.equal(forward, backward)
        assert not torch.equal(forward, other)
        for mine in got:
            assert torch.equal(mine[step][0], forward)
    assert not torch.equal(got[0][0][0], got[0][1][0])
    weights = torch.cat([own(100 + shard, 3, 5) for shard in range(4)])
    limit = 1.01 * weights.abs().max() / 7
    assert all((x - weights).abs().max() <= limit for x in got[0][0])
    assert not any(torch.equal(x, weights) for x in got[0][0])


@pytest.mark.parametrize("engine", ENGINES)
def test_every_member_draws_noise_of_its_own(engine: str) -> None:
    """Members with equal numbers round differently, so that their errors do not add up."""

    async def ask(worker: Worker) -> Any:
        return await worker.mesh.shards.all_gather(worker.ops.alike(own(0, 1, 500)), -2)

    got, _ = run(engine, ask, MeshShape(2, 4), "int4")
    rows = got[0][0]
    assert len({tuple(row.tolist()) for row in rows}) == 4
    errors = rows - own(0, 500)
    assert errors.mean(0).norm() < 0.7 * errors.norm(dim=1).mean()
    assert all(torch.equal(mine[0], rows) for mine in got)


@pytest.mark.parametrize("engine", ENGINES)
def test_noise_depends_on_the_seed_alone_and_on_the_axis(engine: str) -> None:
    async def ask(worker: Worker) -> Any:
        x = worker.ops.alike(own(0, 1, 50))
        return torch.stack([await axis.all_gather(x, -2) for axis in (worker.mesh.shards, worker.mesh.replicas)], -3)

    first, again = (run(engine, ask, MeshShape(2, 2), "int4")[0][0][0] for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first[0], first[1])


def test_programs_without_steps_draw_anew_for_every_collective() -> None:
    """Two gathers of the same numbers by an irregular program; a repeat of the run repeats its draws."""

    class Irregular(IrregularProgram):
        async def main(self, worker: Worker) -> dict[str, Tensor]:
            x = own(0, 1, 50)
            found = [await worker.mesh.shards.all_gather(x, -2) for _ in range(2)]
            return {"first": found[0], "second": found[1]}

    def play() -> dict[str, Tensor]:
        mesh = MeshShape(1, 2)
        wiring = Wiring.from_names(dict.fromkeys(("params", "grads", "factors", "statistics"), "int4"))
        block = LiveBlock(Irregular(), [inline_worker(mesh, index, 0) for index in range(2)], wiring)
        asked = block.resume(dict.fromkeys(range(2)))
        for event in (0, 1):
            answer = (Meeting(event, tuple(one.parcels[0] for one in asked), (0, 1)),)
            asked = block.resume(dict.fromkeys(range(2), answer))
        assert asked[0].params is not None
        return asked[0].params

    found = play()
    assert not torch.equal(found["first"], found["second"])
    assert not torch.equal(found["first"][0], found["first"][1])
    assert all(torch.equal(x, found[name]) for name, x in play().items())

"""The ledger equals the closed forms of cards 8, 9, 11 and 12 to the byte, and the golden numbers of card 20.

Totals are over all workers: n members send (n - 1) S for an all-gather, reduce-scatter or all-to-all of S bytes (of an
all-to-all: each member's buffer), and 2 (n - 1) S for an all-reduce.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, prod
from typing import Any

import pytest
import torch
from torch import Tensor

from simdist.communication.ledger import Ledger, one_plan
from simdist.communication.plans import Ring
from simdist.communication.trace import CollectiveOp
from simdist.compression import EF21, Compression, DeMo, ErrorFeedback, Link, MajorityVote, PowerSGD
from simdist.execution.inline import inline_worker
from simdist.execution.wiring import Wiring
from simdist.program import MeshShape
from simdist.program.requests import AllGather, AllToAll, Compute, Reduce
from tests.compression.harness import HSDP, KINDS, LR, SHAPES, feed, random_gradient

MESHES = [MeshShape(3, 1), MeshShape(1, 3), HSDP, MeshShape(2, 3)]
FACTORS = 2


def booked(method: Compression, mesh: MeshShape) -> dict[tuple[str, str], int]:
    """Bytes of a step that all workers together send, by axis and parameter: float32, with factors in bf16."""
    names = dict.fromkeys(KINDS, "fp32") | {"factors": "bf16"}
    fed = feed(
        method, mesh, random_gradient(), "stacked", steps=2, dtype=torch.float32, wiring=Wiring.from_names(names)
    )
    ledger, found = Ledger(mesh, one_plan(mesh, Ring())), {}
    for op in fed.collectives:
        if op.purpose != "diagnostic":
            key = (op.axis, op.tensor.split(":")[0])
            groups = mesh.workers // mesh.size(op.axis)
            found[key] = found.get(key, 0) + ledger.entry(op, [Ring()] * groups).sent_bytes_total
    return found


Form = Callable[[str, tuple[int, ...], int, int], int]
"""``form(axis, shape, members, groups)``: shape is of what a member hands in, over shards the whole padded tensor."""


def expected(form: Form, mesh: MeshShape, axes: tuple[str, ...] = ("replicas", "shards")) -> dict[tuple[str, str], int]:
    found = {}
    for name, shape in SHAPES.items():
        rows = ceil(shape[0] / mesh.shards)
        for axis, first in (("replicas", rows), ("shards", rows * mesh.shards)):
            n = mesh.size(axis)
            if n > 1 and axis in axes:
                found[axis, name] = form(axis, (first, *shape[1:]), n, mesh.workers // n)
    return {key: sent for key, sent in found.items() if sent >= 0}


def gathered(size: Callable[[int], int]) -> Form:
    """(n - 1) s per worker; over shards (F - 1) slices, each a message."""

    def form(axis: str, shape: tuple[int, ...], n: int, groups: int) -> int:
        d = prod(shape)
        return groups * n * (n - 1) * (size(d) if axis == "replicas" else size(d // n))

    return form


def two_shot(size: Callable[[int], int], back: Callable[[int], int]) -> Form:
    """Slices to their owners, and (over replicas) sums back."""

    def form(axis: str, shape: tuple[int, ...], n: int, groups: int) -> int:
        each = ceil(prod(shape) / n)
        return groups * n * (n - 1) * (size(each) + (back(each) if axis == "replicas" else 0))

    return form


def summed(size: Callable[[int], int]) -> Form:
    """An all-reduce of s, or a reduce-scatter of n slices."""

    def form(axis: str, shape: tuple[int, ...], n: int, groups: int) -> int:
        d = prod(shape)
        return groups * (n - 1) * (2 * size(d) if axis == "replicas" else n * size(d // n))

    return form


def factors(rank: int, sides: int = 2, min_rate: float = 0.9) -> Form:
    """2 ring(n) (m + n) r b; with sides in turn one of them (the second step sends Q)."""

    def form(axis: str, shape: tuple[int, ...], n: int, groups: int) -> int:
        m, columns = shape[0], prod(shape[1:])
        taken = len(shape) > 1 and rank <= min(m, columns) and m * columns > min_rate * (m + columns) * rank
        return groups * 2 * (n - 1) * ((m if sides == 2 else 0) + columns) * rank * FACTORS if taken else -1

    return form


def coefficients(k: int, chunk: int, each: Callable[[int, int], int]) -> Form:
    """(n - 1) times chunks k (b_index + b_value)."""

    def divisor(side: int) -> int:
        return max(d for d in range(1, chunk + 1) if side % d == 0)

    def form(axis: str, shape: tuple[int, ...], n: int, groups: int) -> int:
        sides = (shape[0], prod(shape[1:])) if len(shape) > 1 else (shape[0],)
        size = prod(divisor(side) for side in sides)
        return groups * n * (n - 1) * each(prod(sides) // size * min(k, size), (size - 1).bit_length())

    return form


FORMS: dict[str, tuple[Compression, Form]] = {
    "top-k": (ErrorFeedback(codec="topk(k=4)"), gathered(lambda d: min(4, d) * 8)),
    "top-k, packed": (
        ErrorFeedback(codec="topk(k=4, index=packed, values=bf16)"),
        gathered(lambda d: min(4, d) * 2 + ceil(min(4, d) * (d - 1).bit_length() / 8)),
    ),
    "rand-k": (ErrorFeedback(codec="randk(k=4)"), summed(lambda d: min(4, d) * 4)),
    "sign": (ErrorFeedback(codec="sign"), two_shot(lambda d: ceil(d / 8) + 4, lambda d: ceil(d / 8) + 4)),
    "sign, exact": (
        ErrorFeedback(codec="sign", way_back="exact"),
        two_shot(lambda d: ceil(d / 8) + 4, lambda d: 4 * d),
    ),
    "int8": (ErrorFeedback(codec="int8"), two_shot(lambda d: d + 4, lambda d: d + 4)),
    "bf16": (ErrorFeedback(codec="bf16"), two_shot(lambda d: 2 * d, lambda d: 2 * d)),
    "bf16, accumulated in bf16": (ErrorFeedback(codec="bf16(accumulate=wire)"), summed(lambda d: 2 * d)),
    "EF21": (EF21(codec="topk(k=4)"), gathered(lambda d: min(4, d) * 8)),
    "EF21 of signs": (EF21(codec="sign"), two_shot(lambda d: ceil(d / 8) + 4, lambda d: 4 * d)),
    "PowerSGD": (PowerSGD(rank=2, min_rate=0.9), factors(2)),
    "PowerSGD, sides in turn": (PowerSGD(rank=2, min_rate=0.9, alternate=True), factors(2, sides=1)),
    "DeMo": (DeMo(k=3, chunk=4), coefficients(3, 4, lambda k, bits: 12 * k)),
    "DeMo, packed": (
        DeMo(k=3, chunk=4, index="packed", values="bf16"),
        coefficients(3, 4, lambda k, bits: 2 * k + ceil(k * bits / 8)),
    ),
    "majority vote": (MajorityVote(), two_shot(lambda d: ceil(d / 8), lambda d: ceil(d / 8))),
}


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("key", FORMS)
def test_the_ledger_equals_the_closed_form(key: str, mesh: MeshShape) -> None:
    method, form = FORMS[key]
    found = booked(method, mesh)
    wanted = expected(form, mesh, method.axes)
    assert wanted or (method.name == "demo" and mesh.replicas == 1)
    # what a method does not take travels in the unit's buffer
    assert {place: sent for place, sent in found.items() if place[1] != "unit"} == wanted
    left_out = {
        (axis, name) for axis in ("replicas", "shards") for name in SHAPES if mesh.size(axis) > 1
    } - wanted.keys()
    assert any(place[1] == "unit" for place in found) == bool(left_out)


def test_dense_start_sends_the_first_gradient_whole() -> None:
    fed = feed(EF21(codec="topk(k=4)", start="dense"), HSDP, random_gradient(), "stacked", steps=1, dtype=torch.float32)
    sizes = {op.tensor: (op.op, op.codec, op.payload_bytes) for op in fed.collectives if op.axis == "replicas"}
    rows = {name: 4 * ceil(shape[0] / 2) * prod(shape[1:]) for name, shape in SHAPES.items()}
    found = {name: sizes[name] for name in SHAPES}
    assert found == {name: ("all_reduce", "fp32", size) for name, size in rows.items()}


def test_late_compression_averages_until_then() -> None:
    fed = feed(PowerSGD(start=2), MeshShape(3, 1), random_gradient(), "stacked", steps=3)
    ops = [[op for wave in step for op in wave if isinstance(op, CollectiveOp)] for step in fed.ops]
    parts = [{op.tensor for op in step if op.tensor.startswith("embed")} for step in ops]
    assert parts == [{"embed"}, {"embed"}, {"embed:P", "embed:Q"}]


def test_the_ledger_names_the_encoding() -> None:
    found = {
        op.codec
        for method in (ErrorFeedback(codec="topk(k=4)"), MajorityVote(), PowerSGD(), EF21(codec="sign"))
        for op in feed(method, MeshShape(3, 1), random_gradient(), "stacked", steps=1).collectives
        if op.tensor.split(":")[0] == "embed"
    }
    assert found == {"topk(k=4)", "1 bit", "fp64", "sign"}


# -- golden numbers of card 20: d = 2^20, 8 workers --------------------------------------------------------------------

SIDE, MEMBERS = 1024, 8


def sent_by_one(method: Compression, factor_bytes: int = 2) -> float:
    """Bytes that worker 0 sends in one exchange of a 1024 x 1024 gradient, answered as if all others held the same."""
    worker = inline_worker(MeshShape(MEMBERS, 1), 0, 0).labelled("grad_reduce", "x", "grads")
    link = Link(worker.mesh.replicas, worker, "x", (SIDE, SIDE), False, 1, LR)
    x = torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    program = method.mean(x, method.init(link, torch.zeros_like(x)), link)
    sent, answer, ring = 0.0, None, (MEMBERS - 1) / MEMBERS
    while True:
        try:
            (request,) = program.send(answer)
        except StopIteration:
            return sent
        answer, size = answered(request, factor_bytes)
        sent += ring * size


def answered(request: Any, factor_bytes: int) -> tuple[tuple[Any, ...], int]:
    if isinstance(request, Compute):
        return (None,), 0
    x: Tensor = request.tensor
    width = factor_bytes if request.label.wire == "factors" else x.element_size()
    size = x.numel() * width
    if isinstance(request, Reduce):
        return (x,), 2 * size
    if isinstance(request, AllGather):
        return (torch.cat([x] * MEMBERS, request.dim),), MEMBERS * size
    assert isinstance(request, AllToAll)
    mine = x.narrow(request.split_dim, 0, x.shape[request.split_dim] // MEMBERS)
    return (torch.cat([mine] * MEMBERS, request.concat_dim),), size


GOLDEN: dict[str, tuple[Compression, int]] = {
    "fp32 all-reduce": (ErrorFeedback(codec="fp32"), 7340032),
    "bf16": (ErrorFeedback(codec="bf16"), 3670016),
    "int8 two-shot": (ErrorFeedback(codec="int8"), 1842176),
    "int4": (ErrorFeedback(codec="int4"), 924672),
    "top 1 %": (ErrorFeedback(codec="topk(k=10485)"), 587160),
    "DeMo, int64 and fp32": (DeMo(k=32, chunk=64), 688128),
    "DeMo, packed and bf16": (DeMo(k=32, chunk=64, index="packed", values="bf16"), 200704),
    "SparseLoCo": (ErrorFeedback(codec="sparseloco"), 200872),
    # card 12: 2 ring(W) d / 8
    "majority vote": (MajorityVote(), 229376),
    # and 4 bytes for each of 8 slices, both ways
    "sign": (ErrorFeedback(codec="sign"), 229376 + 2 * 7 * 4),
    # card 8: 2 ring(W) (m + n) r b, with r = 4 in bf16
    "PowerSGD": (PowerSGD(rank=4), 28672),
    "PowerSGD, one side": (PowerSGD(rank=4, alternate=True), 14336),
}


@pytest.mark.parametrize("key", GOLDEN)
def test_golden_numbers_of_card_20(key: str) -> None:
    method, golden = GOLDEN[key]
    assert sent_by_one(method) == golden

"""The mesh: who is in whose group, and axes of size one, which answer without asking."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from simdist.errors import ProgramError
from simdist.execution.inline import inline_worker
from simdist.execution.stacked import cohort
from simdist.program import Axis, Label, MeshShape
from simdist.program.requests import AllGather, AllToAll, Broadcast, Reduce, ReduceScatter

AXES = ("replicas", "shards", "workers")
SHAPES = st.builds(MeshShape, st.integers(1, 6), st.integers(1, 6))


@given(SHAPES, st.sampled_from(AXES))
def test_the_groups_of_an_axis_partition_the_workers(shape: MeshShape, axis: str) -> None:
    groups = {shape.group(axis, worker) for worker in range(shape.workers)}
    assert sorted(worker for group in groups for worker in group) == list(range(shape.workers))
    assert {len(group) for group in groups} == {shape.size(axis)}
    for worker in range(shape.workers):
        assert shape.group(axis, worker)[shape.place(axis, worker)] == worker


@given(SHAPES)
def test_replicas_and_shards_cross_in_one_worker(shape: MeshShape) -> None:
    for worker in range(shape.workers):
        assert set(shape.group("replicas", worker)) & set(shape.group("shards", worker)) == {worker}


def test_whole_matrices_are_dealt_to_shards_or_else_to_replicas() -> None:
    assert [MeshShape(*shape).owners for shape in [(1, 4), (4, 1), (2, 3), (1, 1)]] == [4, 4, 3, 1]


def ask_of(axis: Axis, call: str, x: Tensor, **arguments: object) -> object:
    """Return the request that an axis' method suspends with, or the value that it returns at once."""
    program = getattr(axis, call)(x, **arguments)
    try:
        (request,) = program.send(None)
    except StopIteration as stop:
        return stop.value
    finally:
        program.close()
    return request


CALLS: list[tuple[str, dict[str, object], type]] = [
    ("sum", {}, Reduce),
    ("mean", {}, Reduce),
    ("all_gather", {"dim": -1}, AllGather),
    ("reduce_scatter", {"dim": -1}, ReduceScatter),
    ("all_to_all", {"split_dim": -1, "concat_dim": -2}, AllToAll),
    ("broadcast", {"root": 0}, Broadcast),
]


@pytest.mark.parametrize(("call", "arguments", "kind"), CALLS, ids=[name for name, *_ in CALLS])
def test_an_axis_of_size_one_answers_without_asking(call: str, arguments: dict[str, object], kind: type) -> None:
    x = torch.ones(2, 2)
    alone = inline_worker(MeshShape(1, 1), 0, 0).mesh
    for axis in (alone.replicas, alone.shards, alone.workers):
        assert ask_of(axis, call, x, **arguments) is x
    assert isinstance(ask_of(inline_worker(MeshShape(1, 2), 0, 0).mesh.shards, call, x, **arguments), kind)


def test_sharing_is_local() -> None:
    x = torch.arange(6.0).reshape(1, 6)
    for index in range(6):
        mesh = inline_worker(MeshShape(2, 3), index, 0).mesh
        assert mesh.shards.share(x, -1).tolist() == [[2.0 * (index % 3), 2.0 * (index % 3) + 1]]
        assert mesh.replicas.share(x, -1).tolist() == [[3.0 * (index // 3) + i for i in range(3)]]
    everybody = cohort(MeshShape(2, 3), 0).mesh
    shared = everybody.shards.share(x[None, None], -1)
    assert shared.shape == (1, 3, 1, 2)
    assert shared[0, :, 0].tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    assert inline_worker(MeshShape(2, 1), 0, 0).mesh.shards.share(x, -1) is x


def test_a_cohort_refuses_to_share_over_all_workers() -> None:
    with pytest.raises(ProgramError, match="'replicas' and 'shards'"):
        cohort(MeshShape(2, 3), 0).mesh.workers.share(torch.ones(1, 1, 6), -1)


def test_labels_reach_the_request() -> None:
    worker = inline_worker(MeshShape(1, 2), 0, 0).labelled("grad_reduce", "blocks.0", "grads")
    x = torch.ones(2)
    request = ask_of(worker.mesh.shards, "sum", x)
    assert isinstance(request, Reduce)
    assert request.label == Label("grad_reduce", "blocks.0", "grads")
    request = ask_of(worker.mesh.shards, "sum", x, part="gram", wire="statistics")
    assert isinstance(request, Reduce)
    assert request.label == Label("grad_reduce", "blocks.0:gram", "statistics")


def test_only_measurements_are_free() -> None:
    mesh = inline_worker(MeshShape(1, 2), 0, 0).mesh
    assert mesh.measuring().shards.label.free
    assert not mesh.shards.label.free


@pytest.mark.parametrize("root", [-1, 2])
def test_a_broadcast_from_nobody_is_refused(root: int) -> None:
    axis = inline_worker(MeshShape(1, 2), 0, 0).mesh.shards
    with pytest.raises(ProgramError, match=rf"got root {root} on axis 'shards'; expected a member from 0 to 1"):
        ask_of(axis, "broadcast", torch.ones(1), root=root)


def test_dimensions_are_counted_from_the_end() -> None:
    axis = inline_worker(MeshShape(1, 2), 0, 0).mesh.shards
    with pytest.raises(AssertionError, match="counted from the end"):
        ask_of(axis, "all_gather", torch.ones(2), dim=0)

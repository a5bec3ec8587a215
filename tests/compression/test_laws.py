"""Laws of all gradient compressions: nothing is lost, nothing is invented, nothing is touched."""

from __future__ import annotations

import io
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from simdist.compression import EF21, Compression, DeMo, ErrorFeedback, PowerSGD, compressions
from simdist.parallelism import Compressions
from simdist.program import MeshShape
from simdist.program.state import from_plain, to_plain
from tests.compression.catalogue import CATALOGUE, Stated
from tests.compression.harness import (
    DDP,
    FSDP,
    HSDP,
    MESHES,
    SHAPES,
    Fed,
    feed,
    mapped,
    mean_gradient,
    padded,
    random_gradient,
    rows_of,
    tensors,
)

AXES = {"replicas": DDP, "shards": FSDP}
PLACES = [(key, axis) for key, stated in CATALOGUE.items() for axis in stated.method.axes]


def test_every_registered_compression_is_in_the_catalogue() -> None:
    listed = {stated.method.name for stated in CATALOGUE.values()}
    assert sorted(listed) == sorted(compressions.names()), "add a line to tests/compression/catalogue.py"
    assert all(key.startswith(stated.method.name) for key, stated in CATALOGUE.items())


def feed_with(stated: Stated, axis: str, gradient: Any, **more: Any) -> Fed:
    return feed(stated.method, AXES[axis], gradient, **more)


def full(fed: Fed, step: int, name: str, mesh: MeshShape) -> Tensor:
    """The padded mean of a parameter, from the shards of replica 0."""
    return torch.cat([fed.means[step][worker][name] for worker in range(mesh.shards)])


def remembered(fed: Fed, step: int, name: str, mesh: MeshShape) -> Tensor:
    """What all members together still remember of the mean: errors of gradients, and of sums on their way back."""
    axis = "replicas" if mesh.replicas > 1 else "shards"
    total = torch.zeros(padded(torch.zeros(SHAPES[name]), mesh.shards).shape, dtype=torch.float64)
    for worker in range(mesh.workers):
        state = fed.memories[step][worker].get(f"{axis}/{name}")
        if state is None:
            continue
        own = {"Memory": "error", "Factors": "error", "Momentum": "delta"}[type(state).__name__]
        total += getattr(state, own).reshape(total.shape) / mesh.workers
    state = fed.memories[step][0].get(f"{axis}/{name}")
    if getattr(state, "sum_error", torch.zeros(0)).numel():
        back = torch.cat([fed.memories[step][w][f"{axis}/{name}"].sum_error for w in range(mesh.workers)])
        total += back[: total.numel()].reshape(total.shape)
    return total


@pytest.mark.parametrize(("key", "axis"), [(key, axis) for key, axis in PLACES if CATALOGUE[key].telescopes])
def test_what_was_sent_and_what_is_remembered_add_up(key: str, axis: str) -> None:
    """Sum of means + mean of memories = sum of mean gradients; EF21 instead: g is the mean of all g_i."""
    stated, mesh, gradient, steps = CATALOGUE[key], AXES[axis], random_gradient(), 4
    fed = feed_with(stated, axis, gradient, steps=steps)
    for name in SHAPES:
        if isinstance(stated.method, EF21):
            for step in range(steps):
                own = [fed.memories[step][w][f"{axis}/{name}"].own for w in range(mesh.workers)]
                g = torch.stack(own).mean(0).reshape(padded(torch.zeros(SHAPES[name]), mesh.shards).shape)
                torch.testing.assert_close(full(fed, step, name, mesh), g, rtol=0, atol=1e-13)
            continue
        sent = torch.stack([full(fed, step, name, mesh) for step in range(steps)]).sum(0)
        whole = torch.stack([mean_gradient(gradient, name, step + 1, mesh) for step in range(steps)]).sum(0)
        kept = remembered(fed, steps - 1, name, mesh)
        torch.testing.assert_close(sent + kept, whole, rtol=0, atol=10 * stated.tolerance)


@pytest.mark.parametrize(("key", "axis"), PLACES)
def test_compression_compresses(key: str, axis: str) -> None:
    """The law above is not that of methods that send everything: something is remembered, or forgotten."""
    stated, mesh, gradient = CATALOGUE[key], AXES[axis], random_gradient()
    fed = feed_with(stated, axis, gradient, steps=3)
    away = [float((full(fed, 2, name, mesh) - mean_gradient(gradient, name, 3, mesh)).abs().max()) for name in SHAPES]
    assert max(away) > 1e-4


LOSSLESS: dict[str, tuple[Compression, float]] = {
    "topk": (ErrorFeedback(codec="topk(fraction=1, values=fp64)"), 1e-13),
    "topk fp32": (ErrorFeedback(codec="topk(fraction=1)"), 1e-6),
    "randk": (ErrorFeedback(codec="randk(fraction=1, values=fp64)"), 1e-13),
    "fp64": (ErrorFeedback(codec="fp64"), 1e-13),
    "int16": (ErrorFeedback(codec="int16(rounding=nearest)"), 1e-3),
    "ef21": (EF21(codec="topk(fraction=1, values=fp64)"), 1e-13),
    "ef21 randk": (EF21(codec="randk(fraction=1, values=fp64)"), 1e-13),
    "powersgd": (PowerSGD(rank=6, min_rate=0.1), 1e-12),
    "demo": (DeMo(k=64, chunk=8, values="fp64", weight="one", decay=1.0, merge="all"), 1e-12),
    "demo senders": (DeMo(k=64, chunk=8, values="fp64", weight="one"), 1e-12),
}


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("key", LOSSLESS)
def test_lossless_limits_average_as_usual(key: str, mesh: MeshShape) -> None:
    method, tolerance = LOSSLESS[key]
    gradient = random_gradient()
    fed, plain = feed(method, mesh, gradient, steps=3), feed(None, mesh, gradient, steps=3)
    for step in range(3):
        for mine, theirs in zip(fed.means[step], plain.means[step], strict=True):
            for name in SHAPES:
                torch.testing.assert_close(mine[name], theirs[name], rtol=0, atol=tolerance)
    if isinstance(method, DeMo):
        left = [x for memories in fed.memories[-1] for x in tensors(memories)]
        assert all(float(x.abs().max()) < 1e-12 for x in left), "delta is empty after the step"


def test_demo_sends_gradients_in_units_of_the_learning_rate() -> None:
    gradient = random_gradient()
    fed = feed(DeMo(k=64, chunk=8, values="fp64"), DDP, gradient, steps=1)
    mean = mean_gradient(gradient, "wide", 1, DDP)
    torch.testing.assert_close(fed.means[0][0]["wide"], 0.25 * mean, rtol=0, atol=1e-13)


#: workers round by noise of their own
NOISY = ("int8", "qsdp(bucket=8)", "natural")


@pytest.mark.parametrize(
    ("key", "axis"), [(key, axis) for key, axis in PLACES if getattr(CATALOGUE[key].method, "codec", "") not in NOISY]
)
def test_equal_workers_are_one_worker_twice(key: str, axis: str) -> None:
    """With the same gradient everywhere, the number of workers does not matter."""
    stated = CATALOGUE[key]
    same = random_gradient()
    # slices are messages with a scale each, and there are as many as workers: only whole messages are alike
    whole = axis == "replicas" and getattr(stated.method, "codec", "topk").split("(")[0] in ("topk", "randk", "bf16")
    few = feed_with(stated, axis, lambda name, step, worker: same(name, step, 0), steps=3)
    means = [few.means[2][0], *(few.means[2] if axis == "replicas" else [])]
    if whole:
        many = MeshShape(5, 1)
        means.append(feed(stated.method, many, lambda name, step, worker: same(name, step, 0), steps=3).means[2][0])
    for other in means:
        for name in SHAPES:
            torch.testing.assert_close(other[name], few.means[2][0][name], rtol=0, atol=stated.tolerance)


@pytest.mark.parametrize(("key", "axis"), PLACES)
def test_zeros_stay_zeros(key: str, axis: str) -> None:
    stated = CATALOGUE[key]
    fed = feed_with(stated, axis, random_gradient(0.0), steps=3)
    for worker, values in enumerate(fed.means[-1]):
        for name, x in values.items():
            real = padded(torch.ones(SHAPES[name], dtype=torch.float64), AXES[axis].shards)
            if not stated.zero_from_zero:
                # a tie is +1 by the rule
                assert torch.equal(x, real[rows_of(name, AXES[axis], worker)])
            else:
                assert not x.any()


@pytest.mark.parametrize(("key", "axis"), PLACES)
def test_a_step_without_gradients_does_not_end_communication(key: str, axis: str) -> None:
    """From factors of zero no power step finds back."""
    gradient = random_gradient()
    fed = feed_with(
        CATALOGUE[key],
        axis,
        lambda name, step, worker: gradient(name, step, worker) * (step > 2),
        steps=4,
    )
    assert all(float(x["embed"].abs().max()) > 0 for x in fed.means[-1])


@pytest.mark.parametrize("mesh", [HSDP, MeshShape(2, 3)], ids=str)
@pytest.mark.parametrize("key", CATALOGUE)
def test_padding_rows_stay_exactly_zero(key: str, mesh: MeshShape) -> None:
    """In what the rules get, and in every memory, where they would be sent again and count in scales."""
    method = CATALOGUE[key].method
    # of rank one: directions are made up to complete factors, which must not point into the padding
    fed = feed(method, mesh, lambda name, step, worker: random_gradient()(name, 1, 0) * (worker + 1), steps=3)
    for worker in range(mesh.workers):
        for name, shape in SHAPES.items():
            real = padded(torch.ones(shape, dtype=torch.float64), mesh.shards)
            assert not fed.means[-1][worker][name][real[rows_of(name, mesh, worker)] == 0].any()
            for axis, of in (("shards", real), ("replicas", real[rows_of(name, mesh, worker)])):
                state = fed.memories[-1][worker].get(f"{axis}/{name}")
                for x in tensors(state) if state is not None else []:
                    if x.numel() == of.numel():
                        assert not x.reshape(of.shape)[of == 0].any(), type(state).__name__


@pytest.mark.parametrize("engine", ["inline", "stacked"])
@pytest.mark.parametrize("key", CATALOGUE)
def test_saving_and_restoring_changes_nothing(key: str, engine: str) -> None:
    method, gradient, mesh = CATALOGUE[key].method, random_gradient(), HSDP

    def restored(step: int, memories: Any, fresh: Any) -> Any:
        file = io.BytesIO()
        torch.save(to_plain(memories), file)
        file.seek(0)
        return from_plain(fresh, torch.load(file, weights_only=True))

    one = feed(method, mesh, gradient, engine, steps=3)
    other = feed(method, mesh, gradient, engine, steps=3, between=restored)
    for x, y in zip(tensors(one.means[-1][-1]), tensors(other.means[-1][-1]), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("engine", ["inline", "stacked"])
@pytest.mark.parametrize("key", CATALOGUE)
def test_what_is_given_is_not_touched(key: str, engine: str) -> None:
    mesh = HSDP
    given: list[tuple[Tensor, Tensor]] = []

    def watch(step: int, memories: Any, fresh: Any) -> Any:
        given.extend((x, x.clone()) for x in tensors(memories))
        return memories

    values = {
        (name, step, worker): random_gradient()(name, step, worker)
        for name in SHAPES
        for step in (1, 2, 3)
        for worker in range(mesh.workers)
    }
    before = mapped(torch.clone, {str(key): x for key, x in values.items()})
    feed(CATALOGUE[key].method, mesh, lambda *key: values[key], engine, steps=3, between=watch)
    assert all(torch.equal(x, copy) for x, copy in given)
    assert all(torch.equal(values[place], before[str(place)]) for place in values)


@cache
def usual_means(key: str, axis: str) -> list[dict[str, Tensor]]:
    return feed_with(CATALOGUE[key], axis, random_gradient(), steps=3, dtype=torch.float32).means[-1]


@pytest.mark.parametrize("scale", [1e20, 1e-20])
@pytest.mark.parametrize(("key", "axis"), PLACES)
def test_huge_and_tiny_gradients_are_compressed_like_others(key: str, axis: str, scale: float) -> None:
    """In float32, whose range squares of these leave. Scales by powers of two, so that rounding is alike."""
    stated = CATALOGUE[key]
    exact = 2.0 ** round(torch.tensor(scale, dtype=torch.float64).log2().item())
    huge = feed_with(stated, axis, random_gradient(exact), steps=3, dtype=torch.float32)
    usual = usual_means(key, axis)
    for mine, theirs in zip(huge.means[-1], usual, strict=True):
        for name in SHAPES:
            assert mine[name].isfinite().all()
            if stated.scales and scale > 1:
                torch.testing.assert_close(mine[name].double() / exact, theirs[name].double(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("key", "axis"), PLACES)
def test_a_nan_is_seen(key: str, axis: str) -> None:
    stated, gradient = CATALOGUE[key], random_gradient()

    def diverged(name: str, step: int, worker: int) -> Tensor:
        x = gradient(name, step, worker)
        if worker == 1 and step == 2:
            x.view(-1)[3] = torch.nan
        return x

    fed = feed_with(stated, axis, diverged, steps=2)
    seen = any(not x[name].isfinite().all() for x in fed.means[-1] for name in SHAPES)
    assert seen == stated.shows_nan


@pytest.mark.parametrize("key", CATALOGUE)
def test_both_axes_may_differ(key: str) -> None:
    """One method over replicas and another over shards: each has its memories, and all members agree."""
    method = CATALOGUE[key].method
    both = Compressions(method, ErrorFeedback(codec="int8"))
    fed, stacked = (feed(both, HSDP, random_gradient(), engine, steps=2) for engine in ("inline", "stacked"))
    assert {name.split("/")[0] for name in fed.memories[-1][0]} == {"replicas", "shards"}
    for worker in range(HSDP.workers):
        for name in SHAPES:
            assert torch.equal(fed.means[-1][worker][name], fed.means[-1][worker % HSDP.shards][name])
            torch.testing.assert_close(stacked.means[-1][worker][name], fed.means[-1][worker][name], rtol=0, atol=1e-12)

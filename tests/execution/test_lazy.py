"""What a cohort computes only when a collective takes it: the same bits as computed at once, a few groups at a time."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from simdist.execution import lazy
from simdist.program import MeshShape, Worker, together
from tests.execution.test_stacked import AXES, CASTS, CODERS, HELD, OPS, per_worker, run, values

COLLECTIVES = [name for name in OPS if name != "share"]
MESH = MeshShape(3, 2)


def product(x: Tensor, y: Tensor) -> Tensor:
    return x.mT @ y


@pytest.fixture(autouse=True)
def two_groups_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazy, "PIECE_BYTES", 2 * 24 * 24 * 8)


@pytest.mark.parametrize("codec", [*CASTS, *CODERS])
@pytest.mark.parametrize("name", COLLECTIVES)
def test_late_and_at_once_are_the_same_bits(name: str, codec: str) -> None:
    """Over every axis, whoever holds values of their own, with noise, and where operands are held by different ones."""
    for held in HELD:
        for axis in AXES:

            async def ask(worker: Worker, late: bool, axis: str = axis, held: str = held) -> Any:
                operands = values(worker, MESH, held), values(worker, MESH, "alike on replicas")
                x = worker.ops.lazily(product, *operands) if late else product(*operands)
                return await OPS[name](getattr(worker.mesh, axis), x)

            (late,), late_ops = run("stacked", lambda worker, ask=ask: ask(worker, True), MESH, codec)
            (once,), once_ops = run("stacked", lambda worker, ask=ask: ask(worker, False), MESH, codec)
            assert late_ops == once_ops
            for one, other in zip(per_worker(late, MESH), per_worker(once, MESH), strict=True):
                assert torch.equal(one, other)


@pytest.mark.parametrize("engine", ["inline", "stacked"])
def test_of_many_only_one_lives_at_a_time(engine: str) -> None:
    """Inline every worker's own is computed at once: there it is one worker's, not all workers'."""
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def noted(x: Tensor) -> Tensor:
        nonlocal most
        made = 2 * x
        alive.append(weakref.ref(made))
        most = max(most, sum(ref() is not None for ref in alive))
        return made

    async def ask(worker: Worker) -> Any:
        x = values(worker, MESH, "each its own")
        return await together(*(worker.mesh.shards.sum(worker.ops.lazily(noted, x)) for _ in range(4)))

    run(engine, ask, MESH)
    assert most == (4 * MESH.workers if engine == "inline" else 1)

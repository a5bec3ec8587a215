"""The reference engine's view of a worker: one coroutine per worker, plain tensors without leading axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from simdist.communication.semantics import chunk
from simdist.program import Axis, Mesh, MeshShape, Worker
from simdist.program.worker import Loss, Pack, Params, Use, WorkerOps


class EagerGradients:
    """Gradients that exist: one backward pass has been run."""

    def __init__(self, gradients: Params, loss: Tensor) -> None:
        self._gradients = gradients
        self._loss = loss

    def packed(self, pack: Pack, use: Use = None) -> Tensor:
        return pack(self._gradients)

    def loss(self) -> Tensor:
        return self._loss


class SingleOps(WorkerOps):
    """Base of local work on one worker's own tensors: there are no leading worker axes."""

    def alike(self, x: Tensor) -> Tensor:
        return x

    def plain(self, params: Params) -> Params:
        return params

    def own_bytes(self, x: Tensor) -> int:
        return x.numel() * x.element_size()

    def realize(self, x: Any) -> Tensor:
        assert isinstance(x, Tensor)
        return x


class InlineOps(SingleOps):
    """Local work of one worker."""

    def __init__(self, index: int, count: int) -> None:
        self.index = index
        self.count = count

    def each(self, make: Callable[[int], Tensor]) -> Tensor:
        return make(self.index)

    def gradients(self, loss: Loss, params: Params, batch: Callable[[int], Any]) -> EagerGradients:
        leaves = {name: x.detach().requires_grad_() for name, x in params.items()}
        value = loss(leaves, batch(self.index))
        found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
        gradients = {
            name: torch.zeros_like(x) if g is None else g for (name, x), g in zip(leaves.items(), found, strict=True)
        }
        return EagerGradients(gradients, value.detach())

    def evaluate(self, loss: Loss, params: Params, batches: Sequence[Any]) -> Tensor:
        mine = batches[self.index :: self.count]
        some = next(iter(params.values()))
        total = torch.zeros((), dtype=some.dtype, device=some.device)
        with torch.no_grad():
            for batch in mine:
                total = total + loss(params, batch)
        return total / len(batches)

    def alone(self) -> InlineOps:
        return InlineOps(0, 1)


def inline_worker(mesh: MeshShape, index: int, seed: int) -> Worker:
    """Return the handle of worker ``index``."""

    def axis(name: str) -> Axis:
        size, place = mesh.size(name), mesh.place(name, index)
        return Axis(name, size, place, lambda x, dim: chunk(x, dim, place, size))

    axes = Mesh(axis("replicas"), axis("shards"), axis("workers"))
    return Worker(index, mesh.workers, axes, seed, InlineOps(index, mesh.workers))

"""How a cohort's gradients are computed: by joined batches where a sum is all that is wanted, else worker by worker.

* The sum of the gradients of workers that hold the same parameters is the gradient of their summed loss: one ordinary
  backward pass over the joined batches of a chunk of workers.
* Gradients of their own come from one backward pass each where a pass has much to do, and from ``torch.func.vmap`` over
  a chunk of workers where a pass is so small that starting it would take most of the time.

Chunks are chosen by what a worker's forward pass keeps for its backward pass, which is measured once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from simdist.program import MeshShape
from simdist.program.worker import Loss, Params

#: Bytes that one joined backward pass may keep. More makes nothing faster: matrices are large enough long before.
JOINED_BYTES = 128 * 2**20
#: Bytes of one chunk of workers' own gradients. For a decoder of a million parameters and 128 tokens a worker, vmap
#: over 8 took 0.91 of the time of a pass for each; for 1,024 tokens vmap over any number took a seventh more, or worse.
VMAP_BYTES = 128 * 2**20


class Sizes:
    """How many workers' gradients are computed at a time.

    Args:
        chunk: the number that the user asked for; None: chosen by bytes.
    """

    def __init__(self, chunk: int | None = None) -> None:
        self.chunk = chunk
        self._kept: dict[tuple[Any, ...], int] = {}

    def kept(self, loss: Loss, params: Params, batch: tuple[Tensor, ...]) -> int:
        """Return the bytes that a forward pass keeps for its backward pass, without the parameters.

        Measured for the first batch of its form: all workers of a cohort have batches of one form.
        """
        form = tuple((x.shape, x.dtype) for x in batch)
        if form not in self._kept:
            leaves = {name: x.detach().requires_grad_() for name, x in params.items()}
            own = {x.untyped_storage().data_ptr() for x in leaves.values()}
            found: dict[int, int] = {}

            def note(x: Tensor) -> Tensor:
                storage = x.untyped_storage()
                if storage.data_ptr() not in own:
                    found[storage.data_ptr()] = storage.nbytes()
                return x

            # the loss lives until all is counted, so that no address is used twice
            with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
                value = loss(leaves, batch)
            self._kept[form] = sum(found.values())
            del value
        return self._kept[form]

    def joined(self, kept: int) -> int:
        """Return how many workers' batches are joined in one pass."""
        return self.chunk or max(1, JOINED_BYTES // max(1, kept))

    def apart(self, kept: int, params: Params) -> int:
        """Return how many workers' own gradients are computed by one ``vmap``: one is a pass without it."""
        size = sum(x.numel() * x.element_size() for x in params.values())
        # gradients, the same packed for the wire, and what an encoder makes of them
        return self.chunk or max(1, VMAP_BYTES // (kept + 3 * size))


class Chunk(NamedTuple):
    """Some workers' gradients, each ``[count, ...]``, and their losses ``[count]``, or the sums of them all."""

    gradients: Params
    losses: Tensor


class WorkerGradients:
    """Computes the gradients of some workers of a cohort.

    Args:
        params: ``[R or 1, F or 1, ...]``.
        batch: of a worker of the cohort, counted from 0.
    """

    def __init__(self, mesh: MeshShape, loss: Loss, params: Params, batch: Callable[[int], Any], sizes: Sizes) -> None:
        self._mesh = mesh
        self._loss = loss
        self._params = params
        self._batch = batch
        self._sizes = sizes

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self._params.values())).dtype

    def agree(self, axis: str) -> bool:
        """Whether all members of a group along ``axis`` hold the same parameters."""
        return all(
            (axis == "replicas" or x.shape[1] == 1) and (axis == "shards" or x.shape[0] == 1)
            for x in self._params.values()
        )

    def joined(self, workers: Sequence[int]) -> Chunk:
        """Return the sums over workers that hold the same parameters."""
        leaves = self._leaves(workers[0])
        kept, losses = self._kept(workers[0]), []
        for first in range(0, len(workers), step := self._sizes.joined(kept)):
            members = workers[first : first + step]
            # each worker's loss is a mean over its examples, and all have as many
            loss = self._loss(leaves, tuple(torch.cat(parts) for parts in self._batches(members))) * len(members)
            loss.backward()
            losses.append(loss.detach())
        gradients = {name: torch.zeros_like(x) if x.grad is None else x.grad for name, x in leaves.items()}
        return Chunk(gradients, torch.stack(losses).sum())

    def apart(self, workers: Sequence[int]) -> Iterator[Chunk]:
        """Yield the workers' own, a chunk at a time, in order."""
        kept = self._kept(workers[0])
        step = self._sizes.apart(kept, {name: x[0, 0] for name, x in self._params.items()})
        for first in range(0, len(workers), step):
            members = workers[first : first + step]
            yield self._single(members[0]) if len(members) == 1 else self._by_vmap(members)

    def _single(self, worker: int) -> Chunk:
        leaves = self._leaves(worker)
        loss = self._loss(leaves, self._batch(worker))
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        gradients = {
            name: (torch.zeros_like(x) if g is None else g).unsqueeze(0)
            for (name, x), g in zip(leaves.items(), found, strict=True)
        }
        return Chunk(gradients, loss.detach().unsqueeze(0))

    def _by_vmap(self, workers: Sequence[int]) -> Chunk:
        own = {name: x.shape[0] * x.shape[1] > 1 for name, x in self._params.items()}
        params = {
            name: torch.stack([self._at(x, worker) for worker in workers]) if own[name] else x[0, 0]
            for name, x in self._params.items()
        }
        dims = {name: 0 if mine else None for name, mine in own.items()}
        one = torch.func.grad_and_value(self._loss)
        batches = tuple(torch.stack(parts) for parts in self._batches(workers))
        gradients, losses = torch.func.vmap(one, in_dims=(dims, 0))(params, batches)
        return Chunk(gradients, losses.detach())

    def _batches(self, workers: Sequence[int]) -> Iterator[tuple[Tensor, ...]]:
        """Yield the workers' tensors, one kind after the other."""
        return zip(*(self._batch(worker) for worker in workers), strict=True)

    def _kept(self, worker: int) -> int:
        if self._sizes.chunk is not None:
            return 0
        return self._sizes.kept(self._loss, self._leaves(worker), self._batch(worker))

    def _leaves(self, worker: int) -> Params:
        return {name: self._at(x, worker).detach().requires_grad_() for name, x in self._params.items()}

    def _at(self, x: Tensor, worker: int) -> Tensor:
        r, f = divmod(worker, self._mesh.shards)
        return x[r if x.shape[0] > 1 else 0, f if x.shape[1] > 1 else 0]

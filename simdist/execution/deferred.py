"""Gradients of a cohort that are not computed before it is known how they are summed.

The mean over N workers needs one accumulator, not N gradients. A :class:`DeferredGradients` therefore waits until a
collective asks for a sum over some axis and then makes one pass over the workers in bounded chunks:

* when the payload travels without loss and a group's members hold the same parameters, the sum of their gradients is
  the gradient of their summed loss: one ordinary backward pass over the joined batches of a chunk;
* otherwise ``torch.func.vmap`` computes a chunk of per-worker gradients, each is encoded and decoded by itself as the
  wire would, and the chunk is summed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from simdist.codecs import Codec, payload_bytes, silent
from simdist.communication.semantics import stacked_sum
from simdist.program import MeshShape
from simdist.program.worker import Loss, Params

#: Numbers of the first batch tensor in one joined backward pass, and bytes of one chunk of per-worker gradients.
JOINED_ELEMENTS = 1 << 15
VMAP_BYTES = 256 * 2**20

Pack = Callable[[Params], Tensor]


@dataclass(frozen=True, eq=False)
class Deferred:
    """One packed value of every worker, computed when somebody sums it."""

    owner: DeferredGradients
    number: int

    @property
    def dtype(self) -> torch.dtype:
        return self.owner.dtype

    def summed(self, axis: str, codec: Codec | None) -> tuple[Tensor, int]:
        """Return the sum over an axis (kept with size one) and the bytes of one worker's encoded payload."""
        return self.owner.summed(self.number, axis, codec)

    def realize(self) -> Tensor:
        """Return every worker's own value, ``[R, F, ...]``."""
        return self.owner.realized(self.number)


class DeferredGradients:
    """The gradients of all workers of a cohort (see the module's docstring)."""

    def __init__(
        self, mesh: MeshShape, loss: Loss, params: Params, batch: Callable[[int], Any], chunk: int | None
    ) -> None:
        self.mesh = mesh
        self._loss = loss
        self._params = params
        self._batch = batch
        self._chunk = chunk
        self._packs: list[Pack | None] = []
        self._sums: dict[tuple[str, str], list[tuple[Tensor, int]]] = {}
        self._realized: list[Tensor] | None = None
        self._mean_loss: Tensor | None = None
        self.dtype = next(iter(params.values())).dtype

    def packed(self, pack: Pack) -> Deferred:
        """Register a linear function of the gradients that will be summed; it sees dimensions from the end only."""
        return self._register(pack)

    def loss(self) -> Deferred:
        return self._register(None)

    def _register(self, pack: Pack | None) -> Deferred:
        assert not self._sums, "everything is packed before the first sum is asked for"
        assert self._realized is None, "everything is packed before the first value is asked for"
        self._packs.append(pack)
        return Deferred(self, len(self._packs) - 1)

    def summed(self, number: int, axis: str, codec: Codec | None) -> tuple[Tensor, int]:
        if self._packs[number] is None and axis == "workers" and codec is None and self._mean_loss is not None:
            total = self._mean_loss * self.mesh.workers
            return total.reshape(1, 1), total.element_size()
        if self._realized is not None:
            return self._sum_of_realized(number, axis, codec)
        key = (axis, codec.label if codec else "")
        if key not in self._sums:
            self._sums[key] = self._pass_over(axis, codec)
        return self._sums[key][number]

    def realized(self, number: int) -> Tensor:
        if self._realized is None:
            rows = []
            for first in range(0, self.mesh.workers, step := self._vmap_chunk()):
                workers = list(range(first, min(first + step, self.mesh.workers)))
                rows.append(self._per_worker(workers))
            grid = (self.mesh.replicas, self.mesh.shards)
            self._realized = [torch.cat(parts).unflatten(0, grid) for parts in zip(*rows, strict=True)]
            self._note_losses(self._realized)
        return self._realized[number]

    def _sum_of_realized(self, number: int, axis: str, codec: Codec | None) -> tuple[Tensor, int]:
        assert self._realized is not None
        x = self._realized[number]
        payload = (x,) if codec is None else codec.encode(x, silent)
        value = x if codec is None else codec.round_trip(x)
        if axis == "workers":
            value = stacked_sum(value.flatten(0, 1).unsqueeze(0), 1)
        else:
            value = stacked_sum(value, 0 if axis == "replicas" else 1)
        return value, payload_bytes(payload, self.mesh.workers)

    def _pass_over(self, axis: str, codec: Codec | None) -> list[tuple[Tensor, int]]:
        """Sum every registered value over every group of an axis."""
        groups = list({self.mesh.group(axis, worker): None for worker in range(self.mesh.workers)})
        lossless = codec is None or codec.lossless(self.dtype)
        joined = lossless and all(self._agrees(axis, x) for x in self._params.values())
        sums = [self._joined(list(group)) if joined else self._summed_by_vmap(list(group), codec) for group in groups]
        result = []
        for number in range(len(self._packs)):
            values = torch.stack([group[number] for group in sums])
            values = values.unsqueeze(1) if axis != "replicas" else values.unsqueeze(0)
            sample = values[0, 0]
            result.append((values, payload_bytes((sample,) if codec is None else codec.encode(sample, silent))))
        self._note_losses([values for values, _ in result], len(groups[0]))
        return result

    def _note_losses(self, values: list[Tensor], members: int = 1) -> None:
        for pack, value in zip(self._packs, values, strict=True):
            if pack is None:
                self._mean_loss = value.mean() / members

    @staticmethod
    def _agrees(axis: str, x: Tensor) -> bool:
        """Whether all members of a group along ``axis`` hold the same value of a parameter."""
        return (axis == "replicas" or x.shape[1] == 1) and (axis == "shards" or x.shape[0] == 1)

    def _at(self, x: Tensor, worker: int) -> Tensor:
        r, f = divmod(worker, self.mesh.shards)
        return x[r if x.shape[0] > 1 else 0, f if x.shape[1] > 1 else 0]

    def _joined(self, workers: list[int]) -> list[Tensor]:
        """Sum over a group by backward passes over joined batches."""
        leaves = {name: self._at(x, workers[0]).detach().requires_grad_() for name, x in self._params.items()}
        totals: list[Tensor] | None = None
        some = self._batch(workers[0])
        step = self._chunk or max(1, JOINED_ELEMENTS // max(1, some[0].numel()))
        for first in range(0, len(workers), step):
            members = workers[first : first + step]
            batches = [self._batch(worker) for worker in members]
            joined = tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
            loss = self._loss(leaves, joined) * len(members)
            found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
            gradients = {
                name: torch.zeros_like(x) if g is None else g
                for (name, x), g in zip(leaves.items(), found, strict=True)
            }
            values = [loss.detach() if pack is None else pack(gradients) for pack in self._packs]
            totals = values if totals is None else [a + b for a, b in zip(totals, values, strict=True)]
        assert totals is not None
        return totals

    def _summed_by_vmap(self, workers: list[int], codec: Codec | None) -> list[Tensor]:
        """Sum over a group from encoded per-worker values."""
        totals: list[Tensor] | None = None
        for first in range(0, len(workers), step := self._vmap_chunk()):
            values = self._per_worker(workers[first : first + step])
            arrived = [
                x if codec is None or pack is None else codec.round_trip(x)
                for x, pack in zip(values, self._packs, strict=True)
            ]
            sums = [stacked_sum(x, 0)[0] for x in arrived]
            totals = sums if totals is None else [a + b for a, b in zip(totals, sums, strict=True)]
        assert totals is not None
        return totals

    def _vmap_chunk(self) -> int:
        size = sum(x[0, 0].numel() * x.element_size() for x in self._params.values())
        return self._chunk or max(1, VMAP_BYTES // size)

    def _per_worker(self, workers: list[int]) -> list[Tensor]:
        """Return every packed value for some workers, ``[len(workers), ...]``."""
        batches = [self._batch(worker) for worker in workers]
        stacked = tuple(torch.stack(parts) for parts in zip(*batches, strict=True))
        own = {name: x.shape[0] * x.shape[1] > 1 for name, x in self._params.items()}
        params = {
            name: torch.stack([self._at(x, worker) for worker in workers]) if own[name] else x[0, 0]
            for name, x in self._params.items()
        }
        dims = {name: 0 if mine else None for name, mine in own.items()}
        one = torch.func.grad_and_value(self._loss)
        gradients, losses = torch.func.vmap(one, in_dims=(dims, 0))(params, stacked)
        return [losses.detach() if pack is None else pack(gradients) for pack in self._packs]

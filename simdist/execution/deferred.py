"""Gradients of a cohort that are not computed before it is known how they are summed.

The mean over N workers needs one accumulator, not N gradients. A :class:`DeferredGradients` therefore waits until a
collective asks for a sum over some axis and then makes one pass over the workers in bounded chunks:

* when nothing is lost on the wire and a group's members hold the same parameters, joined batches give the sum of their
  gradients at once;
* otherwise workers have gradients of their own, a chunk at a time: each is encoded and decoded by itself as the wire
  would, and the chunk is added to the tree of partial sums.

A pass serves all values whose way to the wire is known by then: a program says it when it packs them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from simdist.communication.semantics import TreeSum
from simdist.execution.coding import Coder, Members
from simdist.execution.worker_gradients import Chunk, Sizes, WorkerGradients
from simdist.program import MeshShape
from simdist.program.requests import Reduce, ReduceScatter
from simdist.program.worker import Loss, Pack, Params, Use

Sum: TypeAlias = "Reduce | ReduceScatter"
#: what encodes a request in the step under way
CoderFor: TypeAlias = Callable[[Any], Coder]
_LEAD = {"replicas": 0, "shards": 1}


@dataclass(eq=False)
class Deferred:
    """One packed value of every worker, computed when somebody asks; what was computed lives as long as this does.

    Attributes:
        pack: of the gradients; None: the loss.
        use: how it will be asked for, as far as the program has said.
        sums: by :func:`_key` of a request, ``[R or 1, F or 1, ...]`` and the bytes of one worker's payload.
        own: every worker's own value ``[R, F, ...]``, once it is there.
    """

    owner: DeferredGradients
    pack: Pack | None
    use: Use
    sums: dict[tuple[Any, ...], tuple[Tensor, int]] = field(default_factory=dict)
    own: Tensor | None = None

    @property
    def dtype(self) -> torch.dtype:
        return self.owner.dtype

    def summed(self, request: Sum, coder_for: CoderFor) -> tuple[Tensor, int]:
        """Return the sum that a request asks for, whole, and the bytes of one worker's encoded payload.

        The request's axis is kept, with size one. Numbers are in the format in which the codec sums.
        """
        return self.owner.summed(self, request, coder_for)

    def realize(self) -> Tensor:
        """Return every worker's own value, ``[R, F, ...]``."""
        return self.owner.realized(self)

    def of(self, chunk: Chunk) -> Tensor:
        """Return the value of some workers."""
        return chunk.losses if self.pack is None else self.pack(chunk.gradients)


class DeferredGradients:
    """The gradients of all workers of a cohort (see the module's docstring).

    Args:
        params: ``[R or 1, F or 1, ...]``.
        batch: of a worker of the cohort, counted from 0.
        places: where a cohort that is one block of a larger mesh begins on each axis; its own groups' members are
            counted from there.
    """

    def __init__(
        self,
        mesh: MeshShape,
        loss: Loss,
        params: Params,
        batch: Callable[[int], Any],
        sizes: Sizes,
        places: dict[str, int] | None = None,
    ) -> None:
        self.mesh = mesh
        self._work = WorkerGradients(mesh, loss, params, batch, sizes)
        self._places = places or dict.fromkeys(("replicas", "shards", "workers"), 0)
        # weak: what nobody can ask for any more is neither computed nor kept
        self._registered: list[weakref.ref[Deferred]] = []
        self._begun = False
        self._mean_loss: Tensor | None = None
        self.dtype = self._work.dtype

    def packed(self, pack: Pack, use: Use = None) -> Deferred:
        """Register a linear function of the gradients; it sees dimensions from the end only."""
        return self._register(pack, use)

    def loss(self) -> Deferred:
        return self._register(None, None)

    def _register(self, pack: Pack | None, use: Use) -> Deferred:
        assert not self._begun, "everything is packed before the first sum or value is asked for"
        handle = Deferred(self, pack, use)
        self._registered.append(weakref.ref(handle))
        return handle

    def _alive(self) -> Iterable[Deferred]:
        return (handle for ref in self._registered if (handle := ref()) is not None)

    def summed(self, handle: Deferred, request: Sum, coder_for: CoderFor) -> tuple[Tensor, int]:
        """See :meth:`Deferred.summed`."""
        coder = coder_for(request)
        measured = coder.codec is None and request.axis.name == "workers"
        if handle.pack is None and measured and self._mean_loss is not None:
            # every pass has computed it
            total = self._mean_loss * self.mesh.workers
            return total.reshape(1, 1), total.element_size()
        if (key := _key(coder)) not in handle.sums:
            served = {handle: coder}
            for other in self._alive():
                if isinstance(other.use, (Reduce, ReduceScatter)):
                    theirs = coder_for(other.use)
                elif other.use is None and other.pack is not None and coder.reads_numbers_only:
                    # nothing was said; most likely the same is wanted of it
                    theirs = coder
                else:
                    continue
                if theirs.request.axis.name == request.axis.name and _key(theirs) not in other.sums:
                    served.setdefault(other, theirs)
            self._pass_over(request.axis.name, served, [h for h in self._alive() if h.use == "own" and h.own is None])
        return handle.sums[key]

    def realized(self, handle: Deferred) -> Tensor:
        """See :meth:`Deferred.realize`."""
        if handle.own is None:
            self._pass_over("workers", {}, [h for h in self._alive() if h.use in (None, "own") and h.own is None])
        if handle.own is None:  # it was to be summed
            self._pass_over("workers", {}, [handle])
        assert handle.own is not None
        return handle.own

    def _pass_over(self, axis: str, served: dict[Deferred, Coder], whole: list[Deferred]) -> None:
        """Compute all gradients once: sums over the groups of an axis, and values of every worker's own."""
        self._begun = True
        groups = list(dict.fromkeys(self.mesh.group(axis, worker) for worker in range(self.mesh.workers)))
        lossless = all(coder.codec is None or coder.codec.lossless(self.dtype) for coder in served.values())
        joined = lossless and not whole and self._work.agree(axis)
        losses = []
        totals: dict[Deferred, Tensor] = {}
        sizes: dict[Deferred, int] = {}
        for number, group in enumerate(groups):
            if joined:
                chunk = self._work.joined(group)
                losses.append(chunk.losses)
                for handle, coder in served.items():
                    value = handle.of(chunk)
                    _put(totals, handle, number, len(groups), value)
                    _, sizes[handle] = coder.contribution(value, Members([0]))
                continue
            trees = {handle: TreeSum(len(group)) for handle in served}
            at = 0
            for chunk in self._work.apart(group):
                losses.append(chunk.losses.sum())
                here = range(at, at + len(chunk.losses))
                for handle, coder in served.items():
                    places = range(here.start + self._places[axis], here.stop + self._places[axis])
                    value, sizes[handle] = coder.contribution(handle.of(chunk), Members(places, 1, 0))
                    trees[handle].add(value)
                for handle in whole:
                    self._keep(handle, [group[i] for i in here], handle.of(chunk))
                at = here.stop
            for handle, tree in trees.items():
                _put(totals, handle, number, len(groups), tree.total())
        self._mean_loss = torch.stack(losses).sum() / self.mesh.workers
        for handle, coder in served.items():
            handle.sums[_key(coder)] = totals.pop(handle).unsqueeze(_LEAD.get(axis, 1)), sizes[handle]

    def _keep(self, handle: Deferred, workers: list[int], values: Tensor) -> None:
        if handle.own is None:
            grid = (self.mesh.replicas, self.mesh.shards)
            handle.own = values.new_empty((*grid, *values.shape[1:]))
        handle.own.flatten(0, 1)[workers] = values


def _put(totals: dict[Deferred, Tensor], handle: Deferred, number: int, groups: int, total: Tensor) -> None:
    """Note one group's sum in its place among all groups': in one piece of memory, which may be large."""
    if groups == 1:
        totals[handle] = total.unsqueeze(0)
        return
    if handle not in totals:
        totals[handle] = total.new_empty((groups, *total.shape))
    totals[handle][number] = total


def _key(coder: Coder) -> tuple[Any, ...]:
    """Return what a sum depends on, besides the values."""
    request = coder.request
    codec = coder.codec.label if coder.codec else ""
    if coder.reads_numbers_only:
        return request.axis.name, codec
    return request.axis.name, codec, type(request), getattr(request, "dim", None), request.label

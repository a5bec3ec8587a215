"""What the virtual clock speaks of: places in programs, events, groups of workers, and words for its errors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

from simdist.communication.plans import Plan
from simdist.communication.trace import CollectiveOp, ComputeOp, ReceiveOp, SendOp, SleepOp

Op: TypeAlias = "CollectiveOp | ComputeOp | SleepOp | SendOp | ReceiveOp"

#: Same as ``simdist.program.mesh.DIAGNOSTIC``, written again because that package imports torch.
DIAGNOSTIC = "diagnostic"


class Place(NamedTuple):
    """Where in whose program an item stands: the worker, the number of its wave (from 0), the item's index in it."""

    worker: int
    wave: int
    item: int


@dataclass(frozen=True)
class Event:
    """Something that is over.

    Attributes:
        op: its descriptor.
        kind: ``collective``, ``send``, ``receive``, ``compute`` or ``sleep``.
        places: where it was asked for: by each member of the group in member order, by the sender, the receiver, ...
        start: when it began: for a collective when its last member had asked for it.
        end: when it was complete: for a send when it was delivered.
        message: for a receive, the place of the send that it took.
        plan: for a collective, what carried it out.
    """

    op: Op
    kind: str
    places: tuple[Place, ...]
    start: float
    end: float
    message: Place | None = None
    plan: Plan | None = None

    @property
    def members(self) -> tuple[int, ...]:
        """The workers that asked, in member order."""
        return tuple(place.worker for place in self.places)


#: What an item's answer refers to: a collective's or awaited send's index in ``events``, the send that a receive took.
Answer: TypeAlias = "int | Place | None"


class Woken(NamedTuple):
    """A worker whose wave is complete at ``time``, with one answer per item."""

    worker: int
    time: float
    answers: tuple[Answer, ...]


class Groups:
    """The groups of workers along each axis of a replicas x shards mesh.

    ``shards``: the workers of one replica; ``replicas``: those with the same shard; ``workers``: all.
    """

    def __init__(self, mesh: tuple[int, int]) -> None:
        replicas, shards = mesh
        count = replicas * shards
        self.by_axis: dict[str, tuple[tuple[int, ...], ...]] = {
            "replicas": tuple(tuple(range(s, count, shards)) for s in range(shards)),
            "shards": tuple(tuple(range(r * shards, (r + 1) * shards)) for r in range(replicas)),
            "workers": (tuple(range(count)),),
        }
        #: the same as arrays, shape [groups, members]
        self.index = {axis: np.array(groups, dtype=np.intp) for axis, groups in self.by_axis.items()}
        self._of = {
            (axis, worker): group for axis, groups in self.by_axis.items() for group in groups for worker in group
        }

    def of(self, axis: str, worker: int) -> tuple[int, ...]:
        """Return the members of the worker's group, in member order."""
        return self._of[axis, worker]


def op_name(op: CollectiveOp) -> str:
    """Return a collective in three words."""
    return f"{op.op} {op.tensor!r} on {op.axis}"


def op_detail(op: CollectiveOp) -> str:
    """Return all that the members of a group must agree on."""
    root = f", root {op.root}" if op.op == "broadcast" else ""
    return f"{op_name(op)} ({op.purpose}, {op.payload_bytes} bytes as {op.codec}{root})"


def worker_list(workers: Iterable[int]) -> str:
    """Return ``worker 1`` or ``workers 0, 1``."""
    numbers = [str(worker) for worker in workers]
    return f"worker{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"

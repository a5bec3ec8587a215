"""A lock-step step as a graph of tasks on streams: what the clock runs, whatever overlaps with what.

A recorded step is a sequence of waves. An overlap policy (:mod:`simdist.execution.overlap`) turns it into tasks: each
worker has the same graph, runs the tasks of one stream in the order of the graph, and begins a task when the stream is
free and all tasks that it comes after have ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from simdist.communication.trace import CollectiveOp, ComputeOp, SleepOp, StepOps, WaveOps
from simdist.execution.events import DIAGNOSTIC

COMPUTE = "compute"


@dataclass(frozen=True)
class Task:
    """One thing that a worker does on a stream.

    Attributes:
        ops: one ComputeOp, one SleepOp, or collectives of equal (axis, op, root) that run as one schedule: their
            payloads add up and latency is paid once (NCCL group calls, DDP's buckets).
        places: (wave, item) of each in the recorded step.
        stream: tasks of one stream run one after the other, in the order of the graph.
        after: numbers of the tasks of the same worker that must have ended.
    """

    ops: WaveOps
    places: tuple[tuple[int, int], ...]
    stream: str
    after: tuple[int, ...]

    @cached_property
    def collective(self) -> CollectiveOp | None:
        """The first of the collectives, which says axis, op and root; None for local work."""
        first = self.ops[0]
        return first if isinstance(first, CollectiveOp) else None

    @cached_property
    def free(self) -> bool:
        """Whether this is a measurement: workers wait for each other, but nothing travels."""
        return self.collective is not None and self.collective.purpose == DIAGNOSTIC

    @cached_property
    def payload_bytes(self) -> int:
        """The joint payload of the collectives."""
        return sum(op.payload_bytes for op in self.ops if isinstance(op, CollectiveOp))

    @property
    def computes(self) -> bool:
        return isinstance(self.ops[0], ComputeOp)


@dataclass(frozen=True)
class StepGraph:
    """The tasks of one step, the same for every worker; a task comes after earlier ones only."""

    step: StepOps
    tasks: tuple[Task, ...]

    @cached_property
    def streams(self) -> dict[str, tuple[int, ...]]:
        """The tasks of each stream, in order."""
        found: dict[str, list[int]] = {}
        for number, task in enumerate(self.tasks):
            found.setdefault(task.stream, []).append(number)
        return {stream: tuple(numbers) for stream, numbers in found.items()}


class GraphBuilder:
    """Collects tasks wave by wave."""

    def __init__(self, step: StepOps) -> None:
        self.step = step
        self._tasks: list[Task] = []

    def add(
        self,
        waves: Iterable[int],
        after: Sequence[int],
        stream: Callable[[CollectiveOp], str],
        compute: str = COMPUTE,
    ) -> tuple[int, ...]:
        """Add the items of some waves, as if they were one wave, and return the numbers of their tasks.

        Args:
            after: what all of them come after.
            stream: the stream of a collective.
            compute: the stream of computing.
        """
        joined: dict[tuple[object, ...], list[tuple[int, int]]] = {}
        for wave in waves:
            for item, op in enumerate(self.step[wave]):
                if isinstance(op, CollectiveOp):
                    key: tuple[object, ...] = (op.axis, op.op, op.root, op.purpose == DIAGNOSTIC)
                else:
                    assert isinstance(op, (ComputeOp, SleepOp)), "lock-step programs send no messages"
                    key = (wave, item)
                joined.setdefault(key, []).append((wave, item))
        first = len(self._tasks)
        for places in joined.values():
            ops = tuple(self.step[wave][item] for wave, item in places)
            one = ops[0]
            if isinstance(one, CollectiveOp):
                on = stream(one)
            elif isinstance(one, ComputeOp):
                on = compute
            else:
                on = f"sleep {places[0][1]}"  # sleeps of one wave run beside each other
            self._tasks.append(Task(ops, tuple(places), on, tuple(after)))
        return tuple(range(first, len(self._tasks)))

    def payload_of(self, wave: int) -> int:
        """Return the bytes that the collectives of a wave carry in all."""
        return sum(op.payload_bytes for op in self.step[wave] if isinstance(op, CollectiveOp))

    def graph(self) -> StepGraph:
        """Return what has been added so far."""
        return StepGraph(self.step, tuple(self._tasks))


def side_by_side(op: CollectiveOp) -> str:
    """Name a stream for collectives that run beside all others of their wave."""
    return f"{op.op} on {op.axis} from {op.root}{' (free)' if op.purpose == DIAGNOSTIC else ''}"


def communicator(op: CollectiveOp) -> str:
    """Name the stream of an axis' communicator: its collectives run one after the other, as NCCL's do."""
    return f"{op.axis}{' (free)' if op.purpose == DIAGNOSTIC else ''}"

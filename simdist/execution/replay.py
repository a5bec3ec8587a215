"""Times of a task graph event by event: every transfer is a flow, and all that are under way share the links fairly.

This is the judge of :mod:`simdist.execution.evaluation`, and what prices steps in which traffic meets traffic.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from simdist.execution.carrier import Carrier
from simdist.execution.evaluation import TaskTimes
from simdist.execution.planning import Planner
from simdist.execution.segments import Segments
from simdist.execution.tasks import StepGraph
from simdist.network.network import Network
from simdist.network.sharing import Floats


@dataclass(slots=True, eq=False)
class _Meeting:
    """A collective of one group: how many have come, and the messages still to run."""

    number: int
    group: tuple[int, ...]
    segments: Segments
    present: int = 0


class Replay:
    """Plays one graph.

    Args:
        network: routes and links.
        planner: which plan each group takes.
        seconds: of each compute or sleep task on each worker, shape [tasks, workers].
        lag: when each worker begins the step; shape [workers].
        clock: what the network's clock shows at the step's start.
        watch: told (time, bit/s in use on each link) whenever that changes.
    """

    def __init__(
        self,
        graph: StepGraph,
        network: Network,
        planner: Planner,
        seconds: Floats,
        lag: Floats,
        clock: float = 0.0,
        watch: Callable[[float, Floats], None] | None = None,
    ) -> None:
        self._graph = graph
        self._planner = planner
        self._seconds = seconds
        self._lag = lag
        self._carrier = Carrier(network, clock, watch)
        self._streams = list(graph.streams.values())
        shape = (len(graph.tasks), len(lag))
        self._begin, self._end = np.zeros(shape), np.zeros(shape)
        self._over = np.zeros(shape, dtype=bool)
        #: per worker and stream: how many of its tasks have begun, and whether the last of them is under way
        self._begun = [[0] * len(self._streams) for _ in lag]
        self._busy = [[False] * len(self._streams) for _ in lag]
        self._stream_of = {n: s for s, numbers in enumerate(self._streams) for n in numbers}
        self._meetings: dict[tuple[int, int], _Meeting] = {}
        self._wake: deque[int] = deque()

    def run(self) -> TaskTimes:
        """Return when each task runs on each worker.

        Raises:
            RunError: when a transfer waits for a link that never comes up again.
        """
        for worker, start in enumerate(self._lag.tolist()):
            self._carrier.at(start, partial(self._wake.append, worker))
        while (upcoming := self._carrier.next_time()) is not None:
            self._carrier.now = upcoming
            while self._carrier.is_due():
                self._carrier.happen()
                while self._wake:
                    self._go_on(self._wake.popleft())
        assert self._over.all(), "a graph whose tasks come after earlier ones only runs to its end"
        finish = self._end.max(axis=0, initial=0.0)
        return TaskTimes(self._begin, self._end, np.maximum(finish, self._lag))

    def _go_on(self, worker: int) -> None:
        """Begin whatever a worker can begin now."""
        for stream, numbers in enumerate(self._streams):
            if self._busy[worker][stream] or self._begun[worker][stream] == len(numbers):
                continue
            number = numbers[self._begun[worker][stream]]
            if all(self._over[earlier, worker] for earlier in self._graph.tasks[number].after):
                self._begun[worker][stream] += 1
                self._busy[worker][stream] = True
                self._begin_task(number, worker)

    def _begin_task(self, number: int, worker: int) -> None:
        op = self._graph.tasks[number].collective
        if op is None:
            self._begin[number, worker] = self._carrier.now
            self._carrier.at(
                self._carrier.now + float(self._seconds[number, worker]), partial(self._end_task, number, worker)
            )
            return
        group = self._planner.groups.of(op.axis, worker)
        meeting = self._meetings.get((number, group[0]))
        if meeting is None:
            index = self._planner.groups.by_axis[op.axis].index(group)
            meeting = _Meeting(number, group, self._segments(number, index, len(group)))
            self._meetings[number, group[0]] = meeting
        meeting.present += 1
        if meeting.present == len(group):
            self._begin[number, list(group)] = self._carrier.now
            self._carrier.collective(group, meeting.segments, partial(self._end_meeting, meeting))

    def _end_task(self, number: int, worker: int) -> None:
        self._end[number, worker] = self._carrier.now
        self._over[number, worker] = True
        self._busy[worker][self._stream_of[number]] = False
        self._wake.append(worker)

    def _end_meeting(self, meeting: _Meeting) -> None:
        for worker in meeting.group:
            self._end_task(meeting.number, worker)

    def _segments(self, number: int, index: int, members: int) -> Segments:
        """Return the messages of a collective in one group."""
        task = self._graph.tasks[number]
        op = task.collective
        assert op is not None
        if task.free:
            return Segments((), 1)
        plan = self._planner.plans(op.axis, op.op, task.payload_bytes, op.root)[index]
        return Segments(plan.rounds(op.op, task.payload_bytes, members, op.root), plan.in_flight(op.op))

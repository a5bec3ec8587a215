"""Times of a task graph event by event: every transfer is a flow, and all that are under way share the links fairly.

This is the judge of :mod:`simdist.execution.evaluation`, and what prices steps in which traffic meets traffic.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from simdist.communication.plans.plan import Plan, Rounds
from simdist.errors import RunError
from simdist.execution.carrier import Carrier
from simdist.execution.evaluation import TaskTimes
from simdist.execution.likeness import Likeness, Pairs, Pattern
from simdist.execution.planning import Planner
from simdist.execution.segments import Segments
from simdist.execution.tasks import StepGraph, Task
from simdist.network.network import Network
from simdist.network.sharing import Floats


@dataclass(slots=True, eq=False)
class _Meeting:
    """A collective of one group: how many have come, and the messages still to run."""

    number: int
    group: tuple[int, ...]
    segments: Segments
    present: int = 0


#: Messages times workers up to which a replay without likenesses is begun: each message may change the rate of as many
#: others. This many take about a day.
LONGEST = 10**11


class Replay:
    """Plays one graph.

    Args:
        network: routes and links.
        planner: which plan each group takes.
        seconds: of each compute or sleep task on each worker, shape [tasks, workers].
        lag: when each worker begins the step; shape [workers].
        clock: what the network's clock shows at the step's start.
        watch: told (time, bit/s in use on each link) whenever that changes.
        lump: let one worker, group and message stand for all that the step cannot tell apart: the same times, sooner.
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
        *,
        lump: bool = False,
    ) -> None:
        self._graph = graph
        self._planner = planner
        # links that vary with time may do so one by one, and a watcher wants to see all
        self._like = alike(graph, network, planner, seconds, lag) if lump and not network.varies and not watch else None
        if self._like is not None:
            seconds, lag = seconds[:, self._like.first], lag[self._like.first]
        self._seconds = seconds
        self._lag = lag
        self._carrier = Carrier(self._like or network, clock, watch)
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
            RunError: when a transfer waits for a link that never comes up again, or there are too many to be replayed.
        """
        if self._like is None:
            self._refuse_the_endless()
        for worker, start in enumerate(self._lag.tolist()):
            self._carrier.at(start, partial(self._wake.append, worker))
        while (upcoming := self._carrier.next_time()) is not None:
            self._carrier.now = upcoming
            while self._carrier.is_due():
                self._carrier.happen()
                while self._wake:
                    self._go_on(self._wake.popleft())
        assert self._over.all(), "a graph whose tasks come after earlier ones only runs to its end"
        finish = np.maximum(self._end.max(axis=0, initial=0.0), self._lag)
        if self._like is None:
            return TaskTimes(self._begin, self._end, finish)
        of = self._like.worker_of
        return TaskTimes(self._begin[:, of], self._end[:, of], finish[of])

    def _refuse_the_endless(self) -> None:
        """Raise RunError for a step that would take days."""
        messages, workers = 0, len(self._lag)
        for task in self._graph.tasks:
            if task.collective is not None and not task.free:
                for index in range(len(self._planner.groups.by_axis[task.collective.axis])):
                    _, rounds = rounds_of(task, self._planner, index)
                    messages += sum(len(transfers) * repeat for transfers, repeat in rounds)
                if messages * workers > LONGEST:
                    raise RunError(
                        f"got a step in which collectives of {workers} workers meet on links, differently for each "
                        f"worker: {messages:.1e} messages or more would have to be followed one by one, which takes "
                        "days; expected workers that are alike (network.topology star, rail-optimised or two-level, "
                        "network.routing=shortest, compute without differences), fewer of them, or no overlap "
                        "(overlap.policy=none)"
                    )

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
        ways: Sequence[int]
        if self._like is None:
            group = ways = self._planner.groups.of(op.axis, worker)
            index = self._planner.groups.by_axis[op.axis].index(group)
        else:
            index, group = self._like.group(op.axis, worker)
            ways = self._like.messages
        meeting = self._meetings.get((number, index))
        if meeting is None:
            meeting = self._meetings[number, index] = _Meeting(number, group, self._segments(number, index))
        meeting.present += 1
        if meeting.present == len(group):
            self._begin[number, list(group)] = self._carrier.now
            self._carrier.collective(ways, meeting.segments, partial(self._end_meeting, meeting))

    def _end_task(self, number: int, worker: int) -> None:
        self._end[number, worker] = self._carrier.now
        self._over[number, worker] = True
        self._busy[worker][self._stream_of[number]] = False
        self._wake.append(worker)

    def _end_meeting(self, meeting: _Meeting) -> None:
        for worker in meeting.group:
            self._end_task(meeting.number, worker)

    def _segments(self, number: int, index: int) -> Segments:
        """Return the messages of a collective in one group."""
        task = self._graph.tasks[number]
        op = task.collective
        assert op is not None
        if task.free:
            return Segments((), 1)
        plan, rounds = rounds_of(task, self._planner, index)
        if self._like is not None:
            rounds = tuple((self._like.round(op.axis, index, one), repeat) for one, repeat in rounds)
        return Segments(rounds, plan.in_flight(op.op))


def rounds_of(task: Task, planner: Planner, index: int) -> tuple[Plan, Rounds]:
    """Return the plan of a group for a collective that travels, and its rounds."""
    op = task.collective
    assert op is not None
    plan = planner.plans(op.axis, op.op, task.payload_bytes, op.root)[index]
    return plan, plan.rounds(op.op, task.payload_bytes, len(planner.groups.by_axis[op.axis][index]), op.root)


def alike(graph: StepGraph, network: Network, planner: Planner, seconds: Floats, lag: Floats) -> Likeness | None:
    """Return what stands for what in a step; None where nothing stands for anything else.

    Args:
        seconds: of local work; shape [tasks, workers].
        lag: when each worker begins; shape [workers].
    """
    collectives: dict[tuple[str, str, int, int], Task] = {}
    for task in graph.tasks:
        if task.collective is not None and not task.free:
            op = task.collective
            collectives.setdefault((op.axis, op.op, task.payload_bytes, op.root), task)
    ways: dict[str, list[list[Plan]]] = {axis: [[] for _ in own] for axis, own in planner.groups.by_axis.items()}
    uniform: dict[tuple[str, Pairs], bool] = {}
    senders: dict[tuple[str, Pairs], set[int]] = {}
    for (axis, op_name, payload_bytes, root), task in collectives.items():
        plans = planner.plans(axis, op_name, payload_bytes, root)
        for own, plan in zip(ways[axis], plans, strict=True):
            own.append(plan)
        for plan in dict.fromkeys(plans):
            groups = {index for index, one in enumerate(plans) if one == plan}
            _, rounds = rounds_of(task, planner, min(groups))
            for transfers, _ in rounds:
                key = axis, tuple(message[:2] for message in transfers)
                uniform[key] = uniform.get(key, True) and len({size for *_, size in transfers}) <= 1
                senders.setdefault(key, set()).update(groups)
    patterns = [Pattern(*key, tuple(sorted(senders[key])), even) for key, even in uniform.items()]
    found = Likeness(
        network, planner.groups, patterns, {axis: list(map(tuple, own)) for axis, own in ways.items()}, seconds, lag
    )
    return found if len(found.first) < network.workers or len(found.messages) < sum(p.size for p in patterns) else None

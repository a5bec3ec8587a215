"""Times of a task graph without events: max-plus along the streams, checked afterwards.

Collectives are assumed not to disturb each other. If in the times found so no two of them use a link at the same time,
these are the true times: by induction over the instants at which something begins. Otherwise there is no answer, and
the graph has to be replayed flow by flow (:mod:`simdist.execution.replay`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simdist.execution.collective_times import TOGETHER, CollectiveTimes, GroupTimes
from simdist.execution.events import Groups
from simdist.execution.lanes import Index
from simdist.execution.tasks import StepGraph, Task
from simdist.network.sharing import Floats


@dataclass(frozen=True)
class TaskTimes:
    """When each task runs on each worker, in seconds from the step's start; shape [tasks, workers].

    Attributes:
        begin: for a collective when the last member of the group has come to it.
        end: when it is over.
        finish: when each worker has nothing left to do; shape [workers].
    """

    begin: Floats
    end: Floats
    finish: Floats


class Evaluation:
    """Evaluates one graph.

    Args:
        seconds: of each compute or sleep task on each worker, shape [tasks, workers]; zero for collectives.
        lag: when each worker begins the step; shape [workers].
        clock: what the network's clock shows at the step's start.
    """

    def __init__(
        self, graph: StepGraph, groups: Groups, times: CollectiveTimes, seconds: Floats, lag: Floats, clock: float
    ) -> None:
        self._graph = graph
        self._groups = groups
        self._times = times
        self._seconds = seconds
        self._lag = lag
        self._clock = clock
        #: (begin, end, links) of everything that uses links: one entry per group, or one for all groups together
        self._uses: list[tuple[float, float, Index]] = []
        self._links = times.links

    def run(self) -> TaskTimes | None:
        """Return the times, or None where collectives meet on a link and have to be replayed."""
        tasks = self._graph.tasks
        shape = (len(tasks), len(self._lag))
        begin, end = np.empty(shape), np.empty(shape)
        free: dict[str, Floats] = {}
        finish = self._lag.copy()
        for number, task in enumerate(tasks):
            ready = free.get(task.stream, self._lag)
            for earlier in task.after:
                ready = np.maximum(ready, end[earlier])
            if task.collective is None:
                begin[number] = ready
                end[number] = ready + self._seconds[number]
            elif not self._meet(task, ready, begin[number], end[number]):
                return None
            free[task.stream] = end[number]
            np.maximum(finish, end[number], out=finish)
        return TaskTimes(begin, end, finish) if self._undisturbed() else None

    def _meet(self, task: Task, ready: Floats, begin: Floats, end: Floats) -> bool:
        """Fill in when the groups of a collective begin and end; False where they have no closed form."""
        op = task.collective
        assert op is not None
        groups = self._groups.index[op.axis]
        starts = ready[groups].max(axis=1)
        begin[groups] = starts[:, None]
        if task.free:
            end[groups] = starts[:, None]
            return True
        found = self._times.times(op.axis, op.op, task.payload_bytes, op.root, starts, self._clock)
        if found is None:
            return False
        together = starts.max() - starts.min() <= TOGETHER * starts.max()
        if not (found.apart or together):
            return False
        end[groups] = (starts + found.seconds)[:, None]
        self._note(found, starts)
        return True

    def _note(self, found: GroupTimes, starts: Floats) -> None:
        ends = starts + found.seconds
        alike = bool((starts == starts[0]).all() and (ends == ends[0]).all())
        if found.apart and not alike:
            uses = zip(starts.tolist(), ends.tolist(), found.links, strict=True)
            self._uses += [use for use in uses if use[1] > use[0]]
        elif ends.max() > starts.min():
            self._uses.append((float(starts.min()), float(ends.max()), found.all_links))

    def _undisturbed(self) -> bool:
        """Whether no link is used by two collectives at once."""
        last = np.zeros(self._links)
        for start, end, links in sorted(self._uses, key=lambda use: use[:2]):
            if (last[links] - start > TOGETHER * start).any():
                return False
            last[links] = end
        return True

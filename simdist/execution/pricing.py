"""Seconds of a recorded lock-step step under a network: values never depend on time, so no tensor is needed.

Two ways give the same times (to 1e-12): a closed evaluation, where collectives provably do not disturb each other, and
an event-driven replay. ``retime`` and the engines price with this one class, so their times are equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from simdist.communication.plans import Collectives, Plan
from simdist.communication.trace import SleepOp, StepOps
from simdist.execution.collective_times import TOGETHER, CollectiveTimes
from simdist.execution.compute_model import ComputeModel
from simdist.execution.evaluation import Evaluation, TaskTimes
from simdist.execution.overlap import NoOverlap, Overlap
from simdist.execution.planning import Planner
from simdist.execution.replay import Replay
from simdist.execution.sections import one_by_one, sections
from simdist.execution.tasks import StepGraph
from simdist.network.network import Network
from simdist.network.sharing import Floats

Interval: TypeAlias = "tuple[float, float]"


@dataclass(frozen=True, eq=False)
class StepTiming:
    """When things happen within a step; all times in seconds from the step's start (lag zero).

    Steps are chained by adding ``advance`` to the start and handing ``lag_after`` to the next ``price``. The latest
    worker's clock is then start + ``duration``.

    Attributes:
        duration: when the latest worker finishes.
        finish: when each worker finishes.
        advance: when the earliest worker finishes: the start of the next step.
        lag_after: how far each worker is behind that (zero or more).
        waves: per wave and item the earliest start and the latest end over the workers or groups.
        compute_seconds: time busy computing, mean over the workers.
        hidden_comm_seconds: of it, with something of the worker's on the network meanwhile, mean over the workers.
        graph: the tasks that the step was run as.
        begin, end: when each task runs on each worker, shape [tasks, workers].
    """

    duration: float
    finish: tuple[float, ...]
    advance: float
    lag_after: tuple[float, ...]
    waves: tuple[tuple[Interval, ...], ...]
    compute_seconds: float
    hidden_comm_seconds: float
    graph: StepGraph
    begin: Floats
    end: Floats


@dataclass(frozen=True, eq=False)
class _Known:
    """What is known of a step whatever the time: its tasks, what local work takes a worker of speed one, its plans.

    Attributes:
        seconds: of each compute task at speed one, and of each sleep at any speed; shape [tasks].
        computes: which tasks compute; shape [tasks].
        plans: of each group, for every collective of the step in order.
    """

    graph: StepGraph
    seconds: Floats
    computes: npt.NDArray[np.bool_]
    plans: tuple[tuple[Plan, ...], ...]

    @cached_property
    def sections(self) -> tuple[tuple[slice, StepGraph], ...]:
        """The graph in pieces that follow one after the other."""
        return tuple(sections(self.graph))


class StepPricer:
    """Prices steps of descriptors that are the same for every worker.

    Args:
        network: routes and links between the workers.
        mesh: (replicas, shards).
        collectives: which plan carries out a collective.
        compute: how long workers compute.
        overlap: what of a step may run at the same time.
        exact: replay every step, never take the closed evaluation (tests hold one against the other).
    """

    #: numbers that remembered steps may hold in all
    _REMEMBERED = 2**24

    def __init__(
        self,
        network: Network,
        mesh: tuple[int, int],
        collectives: Collectives,
        compute: ComputeModel,
        overlap: Overlap | None = None,
        *,
        exact: bool = False,
    ) -> None:
        assert network.workers == mesh[0] * mesh[1] == compute.workers
        self.network = network
        self._compute = compute
        self._overlap = overlap or NoOverlap()
        self._exact = exact
        self.planner = Planner(network, mesh, collectives)
        self._times = CollectiveTimes(network, self.planner)
        self._known: dict[StepOps, _Known] = {}
        self._last: tuple[StepOps, _Known] | None = None
        self._steps: dict[tuple[object, ...], StepTiming] = {}
        self._held = 0

    def plans(self, step: StepOps) -> tuple[tuple[Plan, ...], ...]:
        """Return the plan of each group for every collective of a step, in order."""
        return self._look_up(step).plans

    def price(
        self, step: StepOps, lag: tuple[float, ...] | None = None, number: int = 1, clock: float = 0.0
    ) -> StepTiming:
        """Return the times of a step that each worker begins ``lag`` seconds (zero or more) after the step's start.

        Args:
            number: of the step, from 1: stragglers differ from step to step.
            clock: simulated seconds at the step's start: capacities may vary with time.

        Raises:
            RunError: when a transfer waits for a link that never comes up again.
        """
        workers = self.network.workers
        lag = lag or (0.0,) * workers
        assert len(lag) == workers
        assert min(lag) >= 0
        slowness = self._compute.slowness_in(number)
        known = self._look_up(step)
        key = (id(known), lag, slowness, clock if self.network.varies else None)
        timing = self._steps.get(key)
        if timing is None:
            timing = self._price(known, np.array(lag), slowness, clock)
            self._remember(key, timing)
        return timing

    def watched(
        self, step: StepOps, watch: Callable[[float, Floats], None], lag: tuple[float, ...], number: int, clock: float
    ) -> None:
        """Replay a step for an observer: ``watch`` is told (time, bit/s in use on each link) as that changes."""
        known = self._look_up(step)
        seconds = _on_workers(known, self._compute.slowness_in(number))
        Replay(known.graph, self.network, self.planner, seconds, np.array(lag), clock, watch).run()

    def _look_up(self, step: StepOps) -> _Known:
        # a step is a big value to hash, and most are the same object as the one before
        if self._last is None or self._last[0] is not step:
            if step not in self._known:
                self._known[step] = self._study(step)
            self._last = step, self._known[step]
        return self._last[1]

    def _study(self, step: StepOps) -> _Known:
        graph = self._overlap.graph(step)
        computing = self._compute.step_seconds(step)
        seconds, plans = np.zeros(len(graph.tasks)), dict[tuple[int, int], tuple[Plan, ...]]()
        for number, task in enumerate(graph.tasks):
            first, op = task.ops[0], task.collective
            if task.computes:
                seconds[number] = computing[task.places[0]]
            elif isinstance(first, SleepOp):
                seconds[number] = first.seconds
            elif op is not None:
                chosen = self.planner.plans(op.axis, op.op, task.payload_bytes, op.root)
                plans |= dict.fromkeys(task.places, chosen)
        computes = np.array([task.computes for task in graph.tasks], dtype=bool)
        return _Known(graph, seconds, computes, tuple(plans[place] for place in sorted(plans)))

    def _price(self, known: _Known, lag: Floats, slowness: tuple[float, ...], clock: float) -> StepTiming:
        seconds = _on_workers(known, slowness)
        found: TaskTimes | None = None
        if not self._exact:
            found = self._closed(known.graph, seconds, lag, clock)
            if found is None and len(known.sections) > 1:
                run = partial(self._run, clock=clock)
                found = one_by_one(known.sections, seconds, lag, run)
        return _timing(known.graph, self._replayed(known.graph, seconds, lag, clock) if found is None else found)

    def _run(self, graph: StepGraph, seconds: Floats, lag: Floats, clock: float) -> TaskTimes:
        return self._closed(graph, seconds, lag, clock) or self._replayed(graph, seconds, lag, clock)

    def _closed(self, graph: StepGraph, seconds: Floats, lag: Floats, clock: float) -> TaskTimes | None:
        return Evaluation(graph, self.planner.groups, self._times, seconds, lag, clock).run()

    def _replayed(self, graph: StepGraph, seconds: Floats, lag: Floats, clock: float) -> TaskTimes:
        return Replay(graph, self.network, self.planner, seconds, lag, clock, lump=not self._exact).run()

    def _remember(self, key: tuple[object, ...], timing: StepTiming) -> None:
        """Keep a timing, dropping the oldest when they hold too much."""
        self._held += 2 * timing.begin.size + len(timing.waves)
        while self._steps and self._held > self._REMEMBERED:
            oldest = self._steps.pop(next(iter(self._steps)))
            self._held -= 2 * oldest.begin.size + len(oldest.waves)
        self._steps[key] = timing


def _on_workers(known: _Known, slowness: tuple[float, ...]) -> Floats:
    """Return the seconds of every local task on every worker, shape [tasks, workers]; all sleep alike."""
    return known.seconds[:, None] * np.where(known.computes[:, None], np.array(slowness), 1.0)


def _timing(graph: StepGraph, times: TaskTimes) -> StepTiming:
    waves: list[list[Interval]] = [[(math.inf, -math.inf)] * len(ops) for ops in graph.step]
    if graph.tasks:
        starts, ends = times.begin.min(axis=1).tolist(), times.end.max(axis=1).tolist()
        for task, start, end in zip(graph.tasks, starts, ends, strict=True):
            for wave, item in task.places:
                waves[wave][item] = (start, end)
    finish = times.finish
    duration, advance = float(finish.max()), float(finish.min())
    computes = np.array([task.computes for task in graph.tasks], dtype=bool)
    travels = np.array([task.collective is not None and not task.free for task in graph.tasks], dtype=bool)
    busy = _busy(times.begin[computes], times.end[computes])
    talking = _busy(times.begin[travels], times.end[travels])
    both = _busy(times.begin[computes | travels], times.end[computes | travels])
    hidden = busy + talking - both
    return StepTiming(
        duration=duration,
        finish=tuple(finish.tolist()),
        advance=advance,
        lag_after=tuple(_on_grid(end - advance, duration) for end in finish.tolist()),
        waves=tuple(tuple(items) for items in waves),
        compute_seconds=_mean(busy),
        hidden_comm_seconds=_mean(np.where(hidden > TOGETHER * duration, hidden, 0.0)),
        graph=graph,
        begin=times.begin,
        end=times.end,
    )


def _busy(begin: Floats, end: Floats) -> Floats:
    """Return for how long at least one of some intervals runs, per worker; shapes [intervals, workers]."""
    if not len(begin):
        return np.zeros(begin.shape[1])
    # in most steps most workers do the same as the first, at the same time
    unlike = np.flatnonzero(((begin != begin[:, :1]) | (end != end[:, :1])).any(axis=0))
    found = np.full(begin.shape[1], _covered(begin[:, :1], end[:, :1])[0])
    found[unlike] = _covered(begin[:, unlike], end[:, unlike])
    return found


def _covered(begin: Floats, end: Floats) -> Floats:
    order = np.argsort(begin, axis=0, kind="stable")
    begin, end = np.take_along_axis(begin, order, 0), np.take_along_axis(end, order, 0)
    until = np.maximum.accumulate(end, axis=0)
    covered = np.vstack([np.full((1, begin.shape[1]), -np.inf), until[:-1]])
    busy: Floats = np.maximum(0.0, end - np.maximum(begin, covered)).sum(axis=0)
    return busy


def _mean(values: Floats) -> float:
    return math.fsum(values.tolist()) / len(values)


def _on_grid(lag: float, duration: float) -> float:
    """Round a lag to a grid of about 1e-13 of the step, so that a lag that settles is the same number each step.

    Without it the last bits would wander, and no step would be priced from memory.
    """
    if lag == 0:
        return 0.0
    grid = 2.0 ** (math.floor(math.log2(duration)) - 43)
    return round(lag / grid) * grid

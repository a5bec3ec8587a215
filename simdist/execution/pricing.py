"""Seconds of a recorded lock-step step under a network: values never depend on time, so no tensor is needed.

Two ways give the same times (to 1e-12): a closed evaluation, where all workers provably stay side by side, and a
replay of the whole step through :class:`simdist.execution.timeline.Timeline`. ``retime`` and the engines price with
this one class, so their times are equal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple, TypeAlias, TypeVar

from simdist.communication.plans.plan import Plan, Round
from simdist.communication.trace import CollectiveOp, ComputeOp, SleepOp, StepOps, WaveOps
from simdist.execution.events import DIAGNOSTIC, Groups
from simdist.execution.timeline import Timeline
from simdist.network.flows import drain
from simdist.network.network import Network

Interval: TypeAlias = "tuple[float, float]"
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")

#: Relative difference below which two workers or groups count as simultaneous: rounding, not physics.
_TOGETHER = 1e-13


@dataclass(frozen=True)
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
        intervals: per worker the (start, end) of each wave.
    """

    duration: float
    finish: tuple[float, ...]
    advance: float
    lag_after: tuple[float, ...]
    waves: tuple[tuple[Interval, ...], ...]
    compute_seconds: float
    intervals: tuple[tuple[Interval, ...], ...]


class _WaveTiming(NamedTuple):
    """A wave that all workers begin and end together, from zero."""

    seconds: float
    items: tuple[Interval, ...]


class StepPricer:
    """Prices steps of descriptors that are the same for every worker.

    Args:
        network: routes and links between the workers.
        mesh: (replicas, shards).
        plan: how groups carry out collectives.
        flops_per_second: speed of each worker.
        exact: replay every step, never take the closed evaluation (tests hold one against the other).
    """

    _REMEMBERED = 1024

    def __init__(
        self,
        network: Network,
        mesh: tuple[int, int],
        plan: Plan,
        flops_per_second: Sequence[float],
        *,
        exact: bool = False,
    ) -> None:
        self._network = network
        self._mesh = mesh
        self._plan = plan
        self._speeds = tuple(flops_per_second)
        self._exact = exact
        self._groups = Groups(mesh)
        self._steps: dict[tuple[StepOps, tuple[float, ...]], StepTiming] = {}
        self._waves: dict[WaveOps, _WaveTiming | None] = {}
        self._collectives: dict[tuple[str, str, int, int], float | None] = {}
        self._rounds: dict[tuple[str, Round], float | None] = {}

    def price(self, step: StepOps, lag: tuple[float, ...] | None = None) -> StepTiming:
        """Return the times of a step that each worker begins ``lag`` seconds (zero or more) after the step's start.

        Raises:
            ProgramError, DeadlockError: when the step's messages do not meet (see :class:`Timeline`).
        """
        lag = lag or (0.0,) * len(self._speeds)
        assert len(lag) == len(self._speeds)
        assert min(lag) >= 0
        known = self._steps.get((step, lag))
        if known is None:
            known = None if self._exact else self._side_by_side(step, lag)
            if known is None:
                known = self._replay(step, lag)
            _remember(self._steps, (step, lag), known, self._REMEMBERED)
        return known

    # -- closed evaluation ------------------------------------------------------------------------------------------

    def _side_by_side(self, step: StepOps, lag: tuple[float, ...]) -> StepTiming | None:
        """Add up waves that all workers begin and end together; None where they may drift apart."""
        if len(set(self._speeds)) > 1 or len(set(lag)) > 1:
            return None
        now = lag[0]
        intervals: list[Interval] = []
        waves: list[tuple[Interval, ...]] = []
        for ops in step:
            wave = self._wave(ops)
            if wave is None:
                return None
            intervals.append((now, now + wave.seconds))
            waves.append(tuple((now + start, now + end) for start, end in wave.items))
            now += wave.seconds
        workers = len(lag)
        compute = math.fsum(op.flops / self._speeds[0] for ops in step for op in ops if isinstance(op, ComputeOp))
        return StepTiming(
            duration=now,
            finish=(now,) * workers,
            advance=now,
            lag_after=(0.0,) * workers,
            waves=tuple(waves),
            compute_seconds=compute,
            intervals=(tuple(intervals),) * workers,
        )

    def _wave(self, ops: WaveOps) -> _WaveTiming | None:
        if ops not in self._waves:
            _remember(self._waves, ops, self._time_wave(ops), self._REMEMBERED)
        return self._waves[ops]

    def _time_wave(self, ops: WaveOps) -> _WaveTiming | None:
        """Time one wave from zero.

        At the end of a wave without messages no transfer is under way, so it can be timed apart from the others if
        all workers begin and end it together. One schedule (axis, op, root) has a closed form; several share links,
        and are played on a time line of their own.
        """
        fused: dict[tuple[str, str, int], int] = {}
        for op in ops:
            if isinstance(op, CollectiveOp):
                if op.purpose != DIAGNOSTIC:
                    key = (op.axis, op.op, op.root)
                    fused[key] = fused.get(key, 0) + op.payload_bytes
            elif not isinstance(op, (ComputeOp, SleepOp)):
                return None
        if len(fused) > 1:
            return self._alone(ops)
        collective = 0.0
        for (axis, name, root), payload in fused.items():
            seconds = self._collective(axis, name, payload, root)
            if seconds is None:
                return None
            collective = seconds
        busy = accumulate((op.flops / self._speeds[0] for op in ops if isinstance(op, ComputeOp)), initial=0.0)
        before = next(busy)
        items: list[Interval] = []
        for op in ops:
            if isinstance(op, ComputeOp):
                start, before = before, next(busy)
                items.append((start, before))
            elif isinstance(op, SleepOp):
                items.append((0.0, op.seconds))
            else:
                free = isinstance(op, CollectiveOp) and op.purpose == DIAGNOSTIC
                items.append((0.0, 0.0 if free else collective))
        return _WaveTiming(max((end for _, end in items), default=0.0), tuple(items))

    def _alone(self, ops: WaveOps) -> _WaveTiming | None:
        timing = self._replay((ops,), (0.0,) * len(self._speeds))
        if not _together(timing.finish):
            return None
        return _WaveTiming(timing.duration, timing.waves[0])

    def _collective(self, axis: str, op: str, payload_bytes: int, root: int) -> float | None:
        """Return the seconds of a collective that all groups of an axis begin together, if they end it together."""
        key = (axis, op, payload_bytes, root)
        if key not in self._collectives:
            members = len(self._groups.by_axis[axis][0])
            seconds: float | None = 0.0
            for transfers, repeat in self._plan.rounds(op, payload_bytes, members, root):
                one = self._round(axis, transfers)
                if one is None or seconds is None:
                    seconds = None
                    break
                seconds += repeat * one
            _remember(self._collectives, key, seconds, 16 * self._REMEMBERED)
        return self._collectives[key]

    def _round(self, axis: str, transfers: Round) -> float | None:
        """Return the seconds of one round that all groups run at once; None if one group's takes longer."""
        key = (axis, transfers)
        if key not in self._rounds:
            groups = self._groups.by_axis[axis]
            flows = [(group[source], group[target], size) for group in groups for source, target, size in transfers]
            routes = [self._network.route(source, target) for source, target, _ in flows]
            arrivals = drain(self._network.sharing, routes, [size for *_, size in flows]).reshape(len(groups), -1)
            ends = tuple(arrivals.max(axis=1).tolist())
            _remember(self._rounds, key, max(ends) if _together(ends) else None, self._REMEMBERED // 4)
        return self._rounds[key]

    # -- replay -----------------------------------------------------------------------------------------------------

    def _replay(self, step: StepOps, lag: tuple[float, ...]) -> StepTiming:
        timeline = Timeline(self._network, self._mesh, self._plan, self._speeds, start=lag)
        intervals: list[list[Interval]] = [[] for _ in lag]
        if step:
            for worker in range(len(lag)):
                timeline.submit(worker, step[0])
        while woken := timeline.advance():
            for worker, time, _ in woken:
                past = intervals[worker]
                past.append((past[-1][1] if past else lag[worker], time))
                if len(past) < len(step):
                    timeline.submit(worker, step[len(past)])
        finish = tuple(timeline.clock(worker) for worker in range(len(lag)))
        advance = min(finish)
        duration = max(finish)
        return StepTiming(
            duration=duration,
            finish=finish,
            advance=advance,
            lag_after=tuple(_on_grid(end - advance, duration) for end in finish),
            waves=_item_intervals(step, timeline),
            compute_seconds=math.fsum(timeline.compute_seconds(worker) for worker in range(len(lag))) / len(lag),
            intervals=tuple(tuple(past) for past in intervals),
        )


def _item_intervals(step: StepOps, timeline: Timeline) -> tuple[tuple[Interval, ...], ...]:
    merged = [[(math.inf, -math.inf)] * len(ops) for ops in step]
    for event in timeline.events:
        for _, wave, item in event.places:
            start, end = merged[wave][item]
            merged[wave][item] = (min(start, event.start), max(end, event.end))
    return tuple(tuple(items) for items in merged)


def _together(times: Sequence[float]) -> bool:
    return max(times) - min(times) <= _TOGETHER * max(times)


def _on_grid(lag: float, duration: float) -> float:
    """Round a lag to a grid of about 1e-13 of the step, so that a lag that settles is the same number each step.

    Without it the last bits would wander, and no step would be priced from memory.
    """
    if lag == 0:
        return 0.0
    grid = 2.0 ** (math.floor(math.log2(duration)) - 43)
    return round(lag / grid) * grid


def _remember(memory: dict[_Key, _Value], key: _Key, value: _Value, at_most: int) -> None:
    """Keep a result, dropping the oldest when there are too many."""
    if len(memory) >= at_most:
        del memory[next(iter(memory))]
    memory[key] = value

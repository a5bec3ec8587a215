"""The course of a collective that nothing disturbs: when its segments leave and arrive, group by group."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np

from simdist.communication.plans.moves import Column, Phase
from simdist.communication.plans.plan import Round, Rounds
from simdist.execution.lane_book import Laid, LaneBook
from simdist.execution.lanes import Index, Spans
from simdist.execution.segments import cut
from simdist.network.flows import drain
from simdist.network.network import Network
from simdist.network.sharing import Floats

#: the workers of each group, in member order
Members: TypeAlias = "tuple[tuple[int, ...], ...]"

#: Relative difference below which two workers or groups count as simultaneous: rounding, not physics.
TOGETHER = 1e-13


class Course:
    """Segments of a collective one after the other; see :mod:`simdist.execution.segments` for when each may start.

    Attributes:
        over: when everything so far has arrived, per group.
        apart_by: by how much the groups differ at most in a segment, relative to its time: zero if they stay together.
    """

    def __init__(self, groups: int, in_flight: int) -> None:
        self.in_flight = in_flight
        self.over = np.zeros(groups)
        self.apart_by = 0.0
        self._free = np.zeros(groups)
        #: per segment under way, oldest first: when it and all before it have arrived
        self._arrivals: deque[Floats] = deque(maxlen=in_flight)

    def start(self) -> Floats:
        """Return when the next segment starts, per group."""
        if len(self._arrivals) < self.in_flight:
            return self._free
        return np.maximum(self._free, self._arrivals[0])

    def add(self, spans: Spans) -> None:
        """Run one more segment."""
        start = self.start()
        self._free = start + spans.left
        self.over = np.maximum(self.over, start + spans.arrived)
        self._arrivals.append(self.over)

    def run(self, parts: Sequence[Spans], repeat: int) -> None:
        """Run a round, given as its segments, several times in a row."""
        self._compare(parts)
        if self.in_flight == 1:  # barriers: every repetition takes equally long
            self._pass_by(repeat * parts[0].arrived)
            return
        for _ in range(repeat):
            for spans in parts:
                self.add(spans)

    def run_through(self, parts: Sequence[Spans]) -> None:
        """Run many rounds, whose segments have spans of shape [rounds, groups]."""
        self._compare(parts)
        if self.in_flight == 1:
            self._pass_by(parts[0].arrived.sum(axis=0))
            return
        for step in range(len(parts[0].left)):
            for spans in parts:
                self.add(Spans(spans.left[step], spans.arrived[step]))

    def _pass_by(self, seconds: Floats) -> None:
        self.over = self.over + seconds
        self._free = self.over
        self._arrivals.append(self.over)

    def _compare(self, parts: Sequence[Spans]) -> None:
        for times in (times for spans in parts for times in spans):
            most, least = times.max(axis=-1, initial=0.0), times.min(axis=-1, initial=np.inf)
            between = np.divide(most - least, most, out=np.zeros_like(most), where=most > 0)
            self.apart_by = max(self.apart_by, float(between.max(initial=0.0)))

    @property
    def together(self) -> bool:
        """Whether groups that began together have been together in every segment."""
        return self.apart_by <= TOGETHER


def run_phases(phases: Sequence[Phase], book: LaneBook, groups: Index, course: Course) -> Iterator[Laid]:
    """Run phases of a plan on groups that begin together on idle links, none of which vary.

    Args:
        groups: the workers of each; shape [groups, members].

    Yields:
        the lanes of each round, or run of rounds, as it is run.
    """
    for phase in phases:
        if not phase.steps:
            continue
        if phase.turn is not None and not phase.alike:
            source, target, size = phase.moves(0).messages()
            lanes = book.lanes(groups, source, target)
            turns = [phase.turn._replace(sizes=part) for part in _parts(phase.turn.sizes, course.in_flight)]
            course.run_through([lanes.turned(turn, phase.steps) for turn in turns])
            yield lanes
            continue
        for step in range(1 if phase.alike else phase.steps):
            source, target, size = phase.moves(step).messages()
            lanes = book.lanes(groups, source, target)
            parts = [lanes.spans(part) for part in _parts(size, course.in_flight)]
            course.run(parts, phase.steps if phase.alike else 1)
            yield lanes


def _parts(size: Column, in_flight: int) -> list[Column]:
    """Cut messages into segments as :func:`simdist.execution.segments.cut` does."""
    return [size // in_flight + (part < size % in_flight) for part in range(in_flight)]


def drained(network: Network, groups: Sequence[Sequence[int]], transfers: Round, clock: float = 0.0) -> Spans:
    """Return when the messages of groups that start together, on idle links, have left and arrived."""
    flows = [(group[source], group[target], size) for group in groups for source, target, size in transfers]
    routes = [network.route(source, target) for source, target, _ in flows]
    arrived = drain(network.sharing, routes, [size for *_, size in flows], clock)
    left = arrived - np.array([route.latency for route in routes])
    shape = (len(groups), -1)
    return Spans(left.reshape(shape).max(axis=1, initial=0.0), arrived.reshape(shape).max(axis=1, initial=0.0))


def seconds_alone(network: Network, group: Sequence[int], rounds: Rounds, in_flight: int) -> float:
    """Return how long one group takes when nothing else is under way."""
    course = Course(1, in_flight)
    for transfers, repeat in rounds:
        course.run([drained(network, [group], part) for part in cut(transfers, in_flight)], repeat)
    return float(course.over[0])

"""The course of a collective that nothing disturbs: when its segments leave and arrive, group by group."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from simdist.communication.plans.plan import Round, Rounds
from simdist.execution.segments import cut
from simdist.network.flows import drain
from simdist.network.network import Network
from simdist.network.sharing import Floats

#: the workers of each group, in member order
Members: TypeAlias = "tuple[tuple[int, ...], ...]"


class Spans(NamedTuple):
    """When the last message of a segment has left its links, and when it has arrived, per group, from its start."""

    left: Floats
    arrived: Floats


class Course:
    """Segments of a collective one after the other; see :mod:`simdist.execution.segments` for when each may start.

    Attributes:
        over: when everything so far has arrived, per group.
    """

    def __init__(self, groups: int, in_flight: int) -> None:
        self.in_flight = in_flight
        self.over = np.zeros(groups)
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
        if self.in_flight == 1:  # barriers: every repetition takes equally long
            self.over = self.over + repeat * parts[0].arrived
            self._free = self.over
            self._arrivals.append(self.over)
            return
        for _ in range(repeat):
            for spans in parts:
                self.add(spans)


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

"""The instants of an event-driven clock: timers, and messages as flows over the links."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from simdist.execution.segments import Segments
from simdist.network.flows import FlowSimulator, Route
from simdist.network.sharing import Floats, Sharing


class Roads(Protocol):
    """What a carrier asks of a network."""

    @property
    def sharing(self) -> Sharing:
        """Fair rates on its links."""

    def route(self, source: int, target: int) -> Route:
        """Return the links and the latency (s) from one place to another."""


class Carrier:
    """Carries messages and whole collectives over a network, and calls back at given times.

    Args:
        network: routes and links between the workers.
        start: what the network's own clock shows at time zero.
        watch: told (time, bit/s in use on each link) whenever that changes.

    Attributes:
        now: the current instant, moved on by whoever owns this, never past :meth:`next_time`.
    """

    def __init__(
        self, network: Roads, start: float = 0.0, watch: Callable[[float, Floats], None] | None = None
    ) -> None:
        self.now = 0.0
        self._network = network
        self._flows = FlowSimulator(network.sharing, start, watch)
        self._arrivals: dict[int, Callable[[], None]] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, time: float, action: Callable[[], None]) -> None:
        """Call ``action`` at a time; of one instant, in the order of asking."""
        self._count += 1
        heapq.heappush(self._timers, (time, self._count, action))

    def next_time(self) -> float | None:
        """Return the next instant at which something happens; None if nothing ever will."""
        timer = self._timers[0][0] if self._timers else None
        flow = self._flows.next_time()
        if timer is None or flow is None:
            return flow if timer is None else timer
        return min(timer, flow)

    def is_due(self) -> bool:
        """Whether something is still to happen at this instant."""
        due = self.next_time()
        return due is not None and due <= self.now

    def happen(self) -> None:
        """Let what is due happen, timers before arrivals; that may make more of this instant due."""
        while self._timers and self._timers[0][0] <= self.now:
            heapq.heappop(self._timers)[2]()
        for flow in self._flows.advance(self.now):
            self._arrivals.pop(flow)()

    def message(self, source: int, target: int, size: int, arrived: Callable[[], None]) -> None:
        """Send ``size`` bytes from one worker to another."""
        self._start(self._network.route(source, target), size, arrived)

    def collective(self, group: Sequence[int], segments: Segments, over: Callable[[], None]) -> None:
        """Send whatever of a group's collective may be sent now, and so on until everything has arrived."""
        while (started := segments.start()) is not None:
            number, transfers = started
            go_on = partial(self.collective, group, segments, over)
            for source, target, size in transfers:
                route = self._network.route(group[source], group[target])
                if segments.in_flight == 1:
                    # a barrier waits for the arrival alone: leaving and arriving are one event
                    self._start(route, size, partial(self._both, segments, number, go_on))
                else:
                    left = partial(self._left, segments, number, route.latency, go_on)
                    self._start(Route(route.links, 0.0), size, left)
        if segments.over:
            over()

    def _start(self, route: Route, size: int, arrived: Callable[[], None]) -> None:
        self._count += 1
        self._arrivals[self._count] = arrived
        self._flows.start(self._count, route, size, self.now)

    def _both(self, segments: Segments, number: int, go_on: Callable[[], None]) -> None:
        segments.left()
        self._arrived(segments, number, go_on)

    def _left(self, segments: Segments, number: int, latency: float, go_on: Callable[[], None]) -> None:
        segments.left()
        self.at(self.now + latency, partial(self._arrived, segments, number, go_on))
        go_on()

    @staticmethod
    def _arrived(segments: Segments, number: int, go_on: Callable[[], None]) -> None:
        segments.arrived(number)
        go_on()

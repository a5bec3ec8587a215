"""Messages as flows: what is under way over the links, and whom to tell when it has arrived."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from simdist.execution.segments import Segments
from simdist.network.flows import FlowSimulator, Route
from simdist.network.network import Network


class Carrier:
    """Carries messages and whole collectives over a network.

    Args:
        network: routes between the workers.
        flows: the links.
        at: calls something back at a time.

    Attributes:
        now: the current instant, set by whoever owns the clock.
    """

    def __init__(self, network: Network, flows: FlowSimulator, at: Callable[[float, Callable[[], None]], None]) -> None:
        self.now = 0.0
        self._network = network
        self._flows = flows
        self._at = at
        self._count = 0
        self._arrivals: dict[int, Callable[[], None]] = {}

    def next_time(self) -> float | None:
        """Return the next instant at which something happens on the links; None if nothing is under way."""
        return self._flows.next_time()

    def deliver(self) -> None:
        """Tell whoever waits for what has arrived by now."""
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
        self._at(self.now + latency, partial(self._arrived, segments, number, go_on))
        go_on()

    @staticmethod
    def _arrived(segments: Segments, number: int, go_on: Callable[[], None]) -> None:
        segments.arrived(number)
        go_on()

"""Flows that drain through shared links in time.

Fluid model (SimGrid's CM02 without correction factors): a flow occupies all links of its route at once, at its
max-min fair rate (:mod:`simdist.network.sharing`); its last byte arrives ``latency`` after it left. Sizes are in
bytes, rates in bit/s, times in seconds.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from simdist.network.sharing import TIE, Crossings, Floats, Links, Sharing


class Route(NamedTuple):
    """The links (indices into the network's capacities) that a flow crosses, and the sum of their latencies."""

    links: Links
    latency: float


def drain(sharing: Sharing, routes: Sequence[Route], sizes: Sequence[int], start: float = 0.0) -> Floats:
    """Return when each of several flows that start together arrives, in seconds from their start.

    Args:
        sharing: capacities of the links.
        routes: of the flows.
        sizes: of the flows in bytes; a flow of zero bytes takes its latency only.
        start: when they start, on the clock by which capacities vary.

    Raises:
        RunError: when a flow waits for a link that never comes up again.
    """
    bits = np.array(sizes, dtype=np.float64) * 8
    latencies = np.array([route.latency for route in routes], dtype=np.float64)
    everyone = tuple(route.links for route in routes)
    if not sharing.varies:
        seconds = _seconds(bits, sharing.rates(everyone))
        # Nobody's end changes another's rate, as all end at once or share no link: no events needed. The rounds of
        # most plans on most networks are of one of these kinds.
        longest = seconds.max(initial=0.0)
        if longest < math.inf and (longest <= seconds.min(initial=math.inf) * (1 + TIE) or _disjoint(everyone)):
            return latencies + seconds
    return latencies + _drain_by_events(sharing, everyone, bits, start)


def _drain_by_events(sharing: Sharing, routes: Sequence[Links], bits: Floats, start: float) -> Floats:
    """Return when the last bit of each flow leaves: rates hold until a flow ends or a capacity changes."""
    ends = np.zeros(len(routes))
    left = bits.copy()
    active = np.array([bool(links) for links in routes], dtype=bool) & (bits > 0)
    crossings = Crossings.of(routes).only(active)
    now, clock = 0.0, start
    while active.any():
        rates = np.where(active, crossings.rates(sharing.capacities_at(clock)), 0.0)
        change = sharing.next_change(clock)
        if change == math.inf:
            for flow in np.flatnonzero(active & (rates == 0)).tolist():
                sharing.refuse_standstill(routes[flow], clock)
        step = _seconds(left, rates)[active].min()
        if now + step < change - start:
            now += step
            clock = max(clock, start + now)
        else:
            step = change - start - now
            now = change - start
            clock = change
        left -= rates * step
        over = active & (left <= TIE * (bits + rates * now))
        ends[over] = now
        active &= ~over
        crossings = crossings.only(active)
    return ends


def _seconds(bits: Floats, rates: Floats) -> Floats:
    """Return bits / rates; infinite where there are bits and no rate."""
    seconds = np.where(bits > 0, np.inf, 0.0)
    np.divide(bits, rates, out=seconds, where=rates > 0)
    return seconds


def _disjoint(routes: Sequence[Links]) -> bool:
    crossed = [link for links in routes for link in links]
    return len(set(crossed)) == len(crossed)


@dataclass(slots=True)
class _Flow:
    """A flow under way: ``left`` bits at time ``since``, leaving at ``rate``, the last of them at ``end``."""

    links: Links
    latency: float
    bits: float
    left: float
    since: float
    rate: float = 0.0
    end: float = math.inf


class FlowSimulator:
    """Event-driven flows: start them, ask for the next instant at which something happens, advance to it.

    Args:
        sharing: capacities of the links.
        start: this simulator's time zero, on the clock by which capacities vary. All other times here count from it.
        watch: told (time, bit/s in use on each link) whenever rates change; of several calls for one time the last
            one holds.
    """

    def __init__(
        self, sharing: Sharing, start: float = 0.0, watch: Callable[[float, Floats], None] | None = None
    ) -> None:
        self._sharing = sharing
        self._start = start
        self._watch = watch
        self._now = 0.0
        self._flows: dict[int, _Flow] = {}
        self._arrivals: list[tuple[float, int, int]] = []
        self._counter = 0
        self._stale = False
        self._next_end = math.inf
        # The next change of a capacity, here and on the clock of the capacities, and the last one that was passed on
        # that clock: start + now may fall short of it by rounding.
        self._next_change = math.inf
        self._change_due = math.inf
        self._passed = start

    def start(self, flow_id: int, route: Route, size: int, now: float) -> None:
        """Let a flow of ``size`` bytes start at ``now``, which may not lie before anything still due."""
        assert now >= self._now, "flows start in the order of time"
        if now > self._now:
            self._share()  # at the time at which the flows before came and went
            self._now = now
        assert flow_id not in self._flows
        if size == 0 or not route.links:
            self._leave(flow_id, route.latency)
            return
        self._flows[flow_id] = _Flow(route.links, route.latency, size * 8.0, size * 8.0, now)
        self._stale = True

    def next_time(self) -> float | None:
        """Return the next instant at which a flow drains or arrives or its rate may change; None if there is no flow.

        Raises:
            RunError: when a flow waits for a link that never comes up again.
        """
        self._share()
        due = self._arrivals[0][0] if self._arrivals else math.inf
        upcoming = min(self._next_end, self._next_change, due)
        return None if upcoming == math.inf else upcoming

    def advance(self, to: float) -> list[int]:
        """Move to time ``to`` and return the flows that have arrived by then, in order of (arrival, draining)."""
        arrived: list[int] = []
        while (upcoming := self.next_time()) is not None and upcoming <= to:
            self._now = upcoming
            if min(self._next_end, self._next_change) <= upcoming:
                # at a change too: who ends just then may not wait, by rounding, for an outage to pass
                self._end_flows()
            if self._next_change <= upcoming:
                self._passed = self._change_due
            while self._arrivals and self._arrivals[0][0] <= upcoming:
                arrived.append(heapq.heappop(self._arrivals)[2])
        self._now = max(self._now, to)
        return arrived

    def _end_flows(self) -> None:
        now = self._now
        for flow_id, flow in list(self._flows.items()):
            if (flow.end - now) * flow.rate <= TIE * (flow.bits + flow.rate * now):
                del self._flows[flow_id]
                self._leave(flow_id, flow.latency)
        self._stale = True

    def _leave(self, flow_id: int, latency: float) -> None:
        self._counter += 1
        heapq.heappush(self._arrivals, (self._now + latency, self._counter, flow_id))

    def _share(self) -> None:
        """Share the links anew after flows or capacities changed; who keeps its rate keeps its end to the bit."""
        if not self._stale:
            return
        self._stale = False
        now = self._now
        clock = max(self._start + now, self._passed)
        flows = list(self._flows.values())
        self._change_due = self._sharing.next_change(clock) if flows else math.inf
        self._next_change = self._change_due - self._start
        rates = self._sharing.rates(tuple(flow.links for flow in flows), clock).tolist()
        for flow, rate in zip(flows, rates, strict=True):
            if rate == 0 and self._change_due == math.inf:
                self._sharing.refuse_standstill(flow.links, clock)
            if rate != flow.rate:
                flow.left = max(0.0, flow.left - flow.rate * (now - flow.since))
                flow.since = now
                flow.rate = rate
                flow.end = now + flow.left / rate if rate else math.inf
        self._next_end = min((flow.end for flow in flows), default=math.inf)
        if self._watch is not None:
            self._watch(now, self._in_use())

    def _in_use(self) -> Floats:
        used = np.zeros(self._sharing.capacities.size)
        for flow in self._flows.values():
            used[list(flow.links)] += flow.rate
        return used

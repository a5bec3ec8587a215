"""Max-min fair sharing of links, and flows that drain through them in time.

Fluid model (SimGrid's CM02 without correction factors): a flow occupies all links of its route at once, at the rate
that progressive filling gives it (Bertsekas & Gallager, Data Networks, 6.5.2); its last byte arrives ``latency``
after it left. Rates are in bit/s, sizes in bytes, times in seconds.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = "npt.NDArray[np.float64]"
Links: TypeAlias = "tuple[int, ...]"

#: Shares this close (relative) are one level of the filling, and flows this close to their end have ended. Far below
#: the 1e-12 that times are held to, far above rounding: symmetric flows end in one event, not in n.
_TIE = 1e-13


class Route(NamedTuple):
    """The links (indices into the network's capacities) that a flow crosses, and the sum of their latencies."""

    links: Links
    latency: float


def max_min_rates(routes: Sequence[Links], capacities: Floats) -> Floats:
    """Return the max-min fair rate of each flow (bit/s), by progressive filling.

    All rates rise together; when a link is full, its flows stay at that level and the rest goes on. A flow that
    crosses no link has an infinite rate.
    """
    rates = np.full(len(routes), np.inf)
    lengths = np.array([len(links) for links in routes], dtype=np.intp)
    # The incidence of flows and links as pairs, one for each link that a flow crosses.
    flow_of = np.repeat(np.arange(len(routes)), lengths)
    crossed = np.array([link for links in routes for link in links], dtype=np.intp)
    used, link_of = np.unique(crossed, return_inverse=True)
    room = capacities[used].astype(np.float64)
    while flow_of.size:
        crowd = np.bincount(link_of, minlength=used.size)
        share = np.full(used.size, np.inf)
        np.divide(room, crowd, out=share, where=crowd > 0)
        level = share.min()
        full = share <= level * (1 + _TIE)
        settled = np.zeros(len(routes), dtype=bool)
        settled[flow_of[full[link_of]]] = True
        rates[settled] = level
        leaving = settled[flow_of]
        room -= level * np.bincount(link_of[leaving], minlength=used.size)
        flow_of, link_of = flow_of[~leaving], link_of[~leaving]
    return rates


class Sharing:
    """Fair rates on fixed capacities, remembered per set of routes: collectives ask for the same sets again."""

    _REMEMBERED = 4096

    def __init__(self, capacities: Floats) -> None:
        self.capacities = capacities
        self._known: dict[tuple[Links, ...], Floats] = {}

    def rates(self, routes: tuple[Links, ...]) -> Floats:
        """Return the rate of each flow in bit/s (see :func:`max_min_rates`)."""
        known = self._known.get(routes)
        if known is None:
            if len(self._known) >= self._REMEMBERED:
                del self._known[next(iter(self._known))]
            known = self._known[routes] = max_min_rates(routes, self.capacities)
        return known


def drain(sharing: Sharing, routes: Sequence[Route], sizes: Sequence[int]) -> Floats:
    """Return when each of several flows that start together arrives, in seconds from their start."""
    bits = np.array(sizes, dtype=np.float64) * 8
    left = bits.copy()
    arrivals = np.array([route.latency for route in routes], dtype=np.float64)
    everyone = tuple(route.links for route in routes)
    if _disjoint(everyone):
        # Nobody's end changes another's rate: no events needed. A ring's round on a star is of this kind.
        return arrivals + bits / sharing.rates(everyone)
    active = np.array([i for i, links in enumerate(everyone) if links and sizes[i] > 0], dtype=np.intp)
    now = 0.0
    while active.size:
        rates = sharing.rates(tuple(everyone[i] for i in active))
        needed = left[active] / rates
        step = needed.min()
        now += step
        left[active] -= rates * step
        ended = left[active] <= _TIE * bits[active]
        arrivals[active[ended]] += now
        active = active[~ended]
    return arrivals


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
    end: float = np.inf


class FlowSimulator:
    """Event-driven flows: start them, ask for the next instant at which something happens, advance to it."""

    def __init__(self, sharing: Sharing) -> None:
        self._sharing = sharing
        self._now = 0.0
        self._flows: dict[int, _Flow] = {}
        self._arrivals: list[tuple[float, int, int]] = []
        self._counter = 0
        self._stale = False
        self._next_end = np.inf

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
        """Return the next instant at which a flow drains or arrives; None if nothing is under way."""
        self._share()
        upcoming = min(self._next_end, self._arrivals[0][0] if self._arrivals else np.inf)
        return None if upcoming == np.inf else upcoming

    def advance(self, to: float) -> list[int]:
        """Move to time ``to`` and return the flows that have arrived by then, in order of (arrival, draining)."""
        arrived: list[int] = []
        while (upcoming := self.next_time()) is not None and upcoming <= to:
            self._now = upcoming
            if self._next_end <= upcoming:
                self._end_flows()
            while self._arrivals and self._arrivals[0][0] <= upcoming:
                arrived.append(heapq.heappop(self._arrivals)[2])
        self._now = max(self._now, to)
        return arrived

    def _end_flows(self) -> None:
        now = self._now
        for flow_id, flow in list(self._flows.items()):
            if (flow.end - now) * flow.rate <= _TIE * flow.bits:
                del self._flows[flow_id]
                self._leave(flow_id, flow.latency)
        self._stale = True

    def _leave(self, flow_id: int, latency: float) -> None:
        self._counter += 1
        heapq.heappush(self._arrivals, (self._now + latency, self._counter, flow_id))

    def _share(self) -> None:
        """Share the links anew after flows came or went; who keeps its rate keeps its end to the bit."""
        if not self._stale:
            return
        self._stale = False
        now = self._now
        flows = list(self._flows.values())
        rates = self._sharing.rates(tuple(flow.links for flow in flows)).tolist()
        for flow, rate in zip(flows, rates, strict=True):
            if rate != flow.rate:
                flow.left = max(0.0, flow.left - flow.rate * (now - flow.since))
                flow.since = now
                flow.rate = rate
                flow.end = now + flow.left / rate
        self._next_end = min((flow.end for flow in flows), default=np.inf)

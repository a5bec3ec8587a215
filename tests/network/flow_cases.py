"""Random links and flows for the laws of sharing, and a judge that shares links in exact arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from hypothesis import strategies as st

from simdist.network import FlowSimulator, Route, Sharing
from simdist.network.sharing import Floats, Links
from simdist.network.variation import Jitter, Outage, Outages, Together, Variation


@dataclass(frozen=True)
class Case:
    """Flows that start together: capacities in bit/s, routes, sizes in bytes."""

    capacities: Floats
    routes: tuple[Route, ...]
    sizes: tuple[int, ...]

    @property
    def links(self) -> tuple[Links, ...]:
        return tuple(route.links for route in self.routes)

    def on_link(self, link: int) -> list[int]:
        """The flows that cross a link."""
        return [flow for flow, route in enumerate(self.routes) if link in route.links]


@st.composite
def cases(draw: st.DrawFn, *, latency: bool = True) -> Case:
    capacities = draw(st.lists(st.floats(100.0, 1e4), min_size=1, max_size=6))
    links = st.lists(st.integers(0, len(capacities) - 1), min_size=1, max_size=len(capacities), unique=True)
    seconds = st.floats(0.0, 2.0) if latency else st.just(0.0)
    routes = draw(st.lists(st.builds(Route, links.map(tuple), seconds), min_size=1, max_size=8))
    # few sizes, so that some flows are alike and others are not
    sizes = draw(st.lists(st.sampled_from([0, 1, 1000, 1001, 5000]), min_size=len(routes), max_size=len(routes)))
    return Case(np.array(capacities), tuple(routes), tuple(sizes))


@st.composite
def variations(draw: st.DrawFn, links: int) -> Variation:
    """Jitter, or outages of some links, or both."""
    names = [str(link) for link in range(links)]
    outage = st.builds(
        Outage, start=st.floats(0, 100), duration=st.floats(0.5, 100), link=st.sampled_from(["*", *names])
    )
    jitter = st.builds(
        Jitter, sigma=st.floats(0.1, 1), every=st.floats(20, 100), seed=st.integers(0, 99), common=st.booleans()
    )
    parts: list[Variation] = [Outages(draw(st.lists(outage, min_size=1, max_size=3)), names)]
    if draw(st.booleans()):
        parts.append(draw(jitter).on(links))
    return Together(parts)


def simulate(sharing: Sharing, routes: Sequence[Route], sizes: Sequence[int], start: float = 0.0) -> list[float]:
    """Arrival times by the event-driven simulator, all flows starting at its zero."""
    return watched(sharing, routes, sizes, start)[0]


def watched(
    sharing: Sharing, routes: Sequence[Route], sizes: Sequence[int], start: float = 0.0
) -> tuple[list[float], list[tuple[float, Floats]]]:
    """Arrival times, and what is in use on each link from which time on."""
    used: list[tuple[float, Floats]] = []
    flows = FlowSimulator(sharing, start, lambda time, rates: used.append((time, rates)))
    for flow_id, (route, size) in enumerate(zip(routes, sizes, strict=True)):
        flows.start(flow_id, route, size, 0.0)
    arrivals = {}
    while (now := flows.next_time()) is not None:
        for flow_id in flows.advance(now):
            arrivals[flow_id] = now
    return [arrivals[flow_id] for flow_id in range(len(routes))], used


def exact_rates(links: Sequence[Links], capacities: Sequence[Fraction]) -> list[Fraction]:
    """Progressive filling, one link at a time, in rational numbers."""
    rates: dict[int, Fraction] = {}
    room = list(capacities)
    while len(rates) < len(links):
        crowds = [
            [flow for flow, crossed in enumerate(links) if link in crossed and flow not in rates]
            for link in range(len(room))
        ]
        level, fullest = min((room[link] / len(crowd), link) for link, crowd in enumerate(crowds) if crowd)
        for flow in crowds[fullest]:
            rates[flow] = level
            for link in links[flow]:
                room[link] -= level
    return [rates[flow] for flow in range(len(links))]


def exact_arrivals(case: Case) -> list[float]:
    """When each flow arrives, in rational numbers but for the last rounding."""
    capacities = [Fraction(capacity) for capacity in case.capacities.tolist()]
    left = {flow: Fraction(8 * size) for flow, size in enumerate(case.sizes) if size}
    arrivals = [Fraction(route.latency) for route in case.routes]
    now = Fraction(0)
    while left:
        rates = dict(zip(left, exact_rates([case.routes[flow].links for flow in left], capacities), strict=True))
        step = min(left[flow] / rates[flow] for flow in left)
        now += step
        left = {flow: bits - rates[flow] * step for flow, bits in left.items()}
        for flow in [flow for flow, bits in left.items() if bits == 0]:
            arrivals[flow] += now
            del left[flow]
    return [float(arrival) for arrival in arrivals]

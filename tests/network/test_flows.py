"""Max-min fair sharing: cases done by hand, and the laws that define it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from simdist.network import FlowSimulator, Route, Sharing, Star, drain, max_min_rates
from simdist.network.flows import Floats

CAPACITIES = st.lists(st.floats(1.0, 1e4), min_size=1, max_size=6)


@st.composite
def networks(draw: st.DrawFn) -> tuple[list[tuple[int, ...]], Floats]:
    capacities = draw(CAPACITIES)
    route = st.lists(st.integers(0, len(capacities) - 1), min_size=1, max_size=len(capacities), unique=True)
    return [tuple(links) for links in draw(st.lists(route, min_size=1, max_size=8))], np.array(capacities)


def simulate(sharing: Sharing, routes: list[Route], sizes: list[int]) -> list[float]:
    """Arrival times by the event-driven simulator, all flows starting at zero."""
    flows = FlowSimulator(sharing)
    for flow_id, (route, size) in enumerate(zip(routes, sizes, strict=True)):
        flows.start(flow_id, route, size, 0.0)
    arrivals = {}
    while (now := flows.next_time()) is not None:
        for flow_id in flows.advance(now):
            arrivals[flow_id] = now
    return [arrivals[flow_id] for flow_id in range(len(routes))]


def test_one_flow_has_the_narrowest_link_of_its_route() -> None:
    assert max_min_rates([(0, 1)], np.array([10.0, 4.0])).tolist() == [4.0]


def test_two_flows_halve_a_link() -> None:
    assert max_min_rates([(0,), (0,)], np.array([10.0])).tolist() == [5.0, 5.0]


def test_the_classical_three_links() -> None:
    """One flow over links of 10, 4 and 8, one more on each: the long one gets 2, the others what is left."""
    rates = max_min_rates([(0, 1, 2), (0,), (1,), (2,)], np.array([10.0, 4.0, 8.0]))
    assert rates.tolist() == [2.0, 8.0, 2.0, 6.0]


def test_a_flow_over_no_link_is_not_limited() -> None:
    assert max_min_rates([(), (0,)], np.array([3.0])).tolist() == [np.inf, 3.0]
    assert max_min_rates([], np.array([3.0])).tolist() == []


@settings(deadline=None)
@given(networks())
def test_no_link_is_over_its_capacity_and_every_flow_has_a_bottleneck(
    network: tuple[list[tuple[int, ...]], Floats],
) -> None:
    """Bertsekas & Gallager: rates are max-min fair iff each flow crosses a full link on which none is faster."""
    routes, capacities = network
    rates = max_min_rates(routes, capacities)
    on_link = [[flow for flow, links in enumerate(routes) if link in links] for link in range(len(capacities))]
    load = np.array([rates[flows].sum() for flows in on_link])
    assert (load <= capacities * (1 + 1e-12)).all()
    for flow, links in enumerate(routes):
        assert any(
            load[link] >= capacities[link] * (1 - 1e-9) and rates[flow] >= rates[on_link[link]].max() * (1 - 1e-9)
            for link in links
        )


@settings(deadline=None)
@given(networks(), st.floats(1e-3, 1e6))
def test_rates_scale_with_the_capacities(network: tuple[list[tuple[int, ...]], Floats], factor: float) -> None:
    routes, capacities = network
    np.testing.assert_allclose(
        max_min_rates(routes, capacities * factor), max_min_rates(routes, capacities) * factor, rtol=1e-9
    )


@settings(deadline=None)
@given(networks(), networks())
def test_disjoint_networks_superpose(
    one: tuple[list[tuple[int, ...]], Floats], other: tuple[list[tuple[int, ...]], Floats]
) -> None:
    shifted = [tuple(link + len(one[1]) for link in links) for links in other[0]]
    both = max_min_rates(one[0] + shifted, np.concatenate([one[1], other[1]]))
    alone = np.concatenate([max_min_rates(*one), max_min_rates(*other)])
    np.testing.assert_allclose(both, alone, rtol=1e-9)


def test_a_flow_arrives_latency_after_its_last_byte() -> None:
    """1000 bytes over 8 kbit/s take one second, and 0.25 s of latency."""
    assert simulate(Sharing(np.array([8000.0])), [Route((0,), 0.25)], [1000]) == [1.25]


def test_who_stays_gets_what_the_others_leave() -> None:
    """8 kbit/s, 500 and 1000 bytes: 4 kbit/s each for 1 s, then the rest of 500 bytes alone in 0.5 s."""
    assert simulate(Sharing(np.array([8000.0])), [Route((0,), 0.0), Route((0,), 0.0)], [500, 1000]) == [1.0, 1.5]


def test_a_latecomer_takes_its_share_from_then_on() -> None:
    """The first flow has 500 of 1000 bytes left when the second starts; both then run at half the rate."""
    flows = FlowSimulator(Sharing(np.array([8000.0])))
    flows.start(0, Route((0,), 0.0), 1000, 0.0)
    assert flows.advance(0.5) == []
    flows.start(1, Route((0,), 0.0), 250, 0.5)
    assert flows.next_time() == 1.0
    assert flows.advance(1.0) == [1]
    assert flows.next_time() == 1.25
    assert flows.advance(2.0) == [0]
    assert flows.next_time() is None


def test_empty_messages_and_messages_at_home_take_latency_only() -> None:
    assert simulate(Sharing(np.array([1.0])), [Route((0,), 0.5), Route((), 0.0)], [0, 10**9]) == [0.5, 0.0]


@settings(deadline=None)
@given(networks(), st.data())
def test_draining_at_once_equals_the_event_driven_simulator(
    network: tuple[list[tuple[int, ...]], Floats], data: st.DataObject
) -> None:
    routes = [Route(links, data.draw(st.floats(0, 2))) for links in network[0]]
    sizes = data.draw(st.lists(st.integers(0, 10**6), min_size=len(routes), max_size=len(routes)))
    sharing = Sharing(network[1])
    np.testing.assert_allclose(simulate(sharing, routes, sizes), drain(sharing, routes, sizes), rtol=1e-11)


@settings(deadline=None)
@given(networks(), st.data())
def test_every_byte_that_starts_crosses_within_what_the_links_can_carry(
    network: tuple[list[tuple[int, ...]], Floats], data: st.DataObject
) -> None:
    routes = [Route(links, 0.0) for links in network[0]]
    sizes = data.draw(st.lists(st.integers(1, 10**6), min_size=len(routes), max_size=len(routes)))
    ends = drain(Sharing(network[1]), routes, sizes)
    for link, capacity in enumerate(network[1]):
        crossing = [flow for flow, route in enumerate(routes) if link in route.links]
        if crossing:
            bits = 8 * sum(sizes[flow] for flow in crossing)
            assert max(ends[flow] for flow in crossing) >= bits / capacity * (1 - 1e-9)


@settings(deadline=None)
@given(
    st.integers(2, 7),
    st.lists(st.integers(1, 10**6), min_size=7, max_size=7),
    st.floats(1e3, 1e9),
    st.floats(1.0, 100.0),
)
def test_more_bandwidth_never_slows_a_round_of_the_ring(
    members: int, sizes: list[int], bandwidth: float, factor: float
) -> None:
    def ends(rate: float) -> Floats:
        network = Star(bandwidth=rate).network(members)
        routes = [network.route(i, (i + 1) % members) for i in range(members)]
        return drain(network.sharing, routes, sizes[:members])

    assert (ends(bandwidth * factor) <= ends(bandwidth) * (1 + 1e-12)).all()


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_permuting_the_workers_of_a_star_changes_nothing(data: st.DataObject) -> None:
    pairs = st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(1, 10**5)).filter(lambda f: f[0] != f[1])
    flows = data.draw(st.lists(pairs, min_size=1, max_size=8))
    order = data.draw(st.permutations(range(5)))
    assume(list(order) != list(range(5)))
    network = Star(bandwidth=1e6).network(5)
    sizes = [size for *_, size in flows]
    one = drain(network.sharing, [network.route(a, b) for a, b, _ in flows], sizes)
    other = drain(network.sharing, [network.route(order[a], order[b]) for a, b, _ in flows], sizes)
    np.testing.assert_allclose(one, other, rtol=1e-12)


def test_rates_are_remembered_but_not_without_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sharing, "_REMEMBERED", 2)
    sharing = Sharing(np.array([6.0]))
    first = sharing.rates(((0,),))
    assert sharing.rates(((0,),)) is first
    for count in (2, 3):
        assert sharing.rates(((0,),) * count).tolist() == [6.0 / count] * count
    again = sharing.rates(((0,),))
    assert again is not first
    assert again.tolist() == first.tolist()

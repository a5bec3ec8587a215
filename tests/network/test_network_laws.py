"""The laws of shared links: at every instant, over a whole transfer, and between one network and another."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simdist.network import Network, Route, Sharing, drain, max_min_rates
from simdist.network.sharing import Floats
from simdist.network.variation import Outage, Outages, Variation
from tests.network.catalogue import Sample, each_sample
from tests.network.flow_cases import Case, cases, simulate, variations, watched

FACTORS = st.floats(1e-3, 1e6)
#: relative slack for quantities that add up rounding of many events
NEARLY = 1e-9


@st.composite
def varying_cases(draw: st.DrawFn) -> tuple[Case, Variation | None]:
    case = draw(cases(latency=False))
    return case, draw(st.none() | variations(case.capacities.size))


def pieces(used: Sequence[tuple[float, Floats]]) -> list[tuple[float, float, Floats]]:
    """From when to when how much was in use; nothing is after the last call of the watcher."""
    return [(start, end, rates) for (start, rates), (end, _) in itertools.pairwise(used) if end > start]


# -- at every instant -------------------------------------------------------------------------------------------------


@given(varying_cases(), st.floats(0, 200))
def test_no_link_is_over_its_capacity_and_no_flow_waits_for_one_with_room(
    drawn: tuple[Case, Variation | None], start: float
) -> None:
    case, variation = drawn
    check_instants(Sharing(case.capacities, variation), case, start)


def check_instants(sharing: Sharing, case: Case, start: float = 0.0) -> None:
    """No link is over its capacity; each flow under way crosses a link in full use (work conservation)."""
    arrivals, used = watched(sharing, case.routes, case.sizes, start)
    for begin, end, rates in pieces(used):
        middle = (begin + end) / 2
        capacities = sharing.capacities_at(start + middle)
        assert (rates <= capacities * (1 + NEARLY)).all()
        full = rates >= capacities * (1 - NEARLY)
        for route, size, arrival in zip(case.routes, case.sizes, arrivals, strict=True):
            under_way = size > 0 and bool(route.links) and middle < arrival - route.latency
            assert not under_way or full[list(route.links)].any()


@given(cases())
def test_every_flow_has_a_bottleneck(case: Case) -> None:
    """Bertsekas & Gallager: rates are max-min fair iff each flow crosses a full link on which none is faster."""
    rates = max_min_rates(case.links, case.capacities)
    on_link = [case.on_link(link) for link in range(case.capacities.size)]
    load = np.array([rates[flows].sum() for flows in on_link])
    assert (load <= case.capacities * (1 + 1e-12)).all()
    for flow, links in enumerate(case.links):
        assert any(
            load[link] >= case.capacities[link] * (1 - NEARLY)
            and rates[flow] >= rates[on_link[link]].max() * (1 - NEARLY)
            for link in links
        )


# -- over a whole transfer --------------------------------------------------------------------------------------------


@given(varying_cases())
def test_every_byte_crosses_each_link_of_its_route_once(drawn: tuple[Case, Variation | None]) -> None:
    """What is in use, integrated over time, is what was sent: no byte is lost, doubled or takes another way."""
    case, variation = drawn
    check_bytes(Sharing(case.capacities, variation), case)


def check_bytes(sharing: Sharing, case: Case) -> None:
    _, used = watched(sharing, case.routes, case.sizes)
    carried = np.zeros(case.capacities.size)
    for begin, end, rates in pieces(used):
        carried += rates * (end - begin)
    sent = [8 * sum(case.sizes[flow] for flow in case.on_link(link)) for link in range(case.capacities.size)]
    np.testing.assert_allclose(carried, sent, rtol=NEARLY, atol=1e-6)


@given(st.floats(100, 1e4), st.integers(1, 5000), variations(1), st.floats(0, 200))
def test_a_lone_flow_gets_all_that_its_link_has_while_it_lasts(
    capacity: float, size: int, variation: Variation, start: float
) -> None:
    """The integral of the capacity from start to arrival is the size in bits."""
    sharing = Sharing(np.array([capacity]), variation)
    end = start + drain(sharing, [Route((0,), 0.0)], [size], start)[0]
    bits, now = 0.0, start
    while now < end:
        following = min(sharing.next_change(now), end)
        bits += sharing.capacities_at(now)[0] * (following - now)
        now = following
    assert bits == pytest.approx(8 * size, rel=NEARLY)


@given(cases(), st.floats(0.5, 100), st.floats(0, 1))
def test_an_outage_delays_whom_it_stops_by_as_long_as_it_lasts(case: Case, duration: float, when: float) -> None:
    """All links down: every flow that has not left by then comes exactly that much later, the others do not."""
    routes = [Route(route.links, 0.0) for route in case.routes]
    usual = drain(Sharing(case.capacities), routes, case.sizes)
    start = when * usual.max()
    outages = Outages([Outage(start=start, duration=duration)], [str(link) for link in range(case.capacities.size)])
    late = drain(Sharing(case.capacities, outages), routes, case.sizes)
    np.testing.assert_allclose(late, np.where(usual <= start * (1 + 1e-12), usual, usual + duration), rtol=1e-11)


# -- between one network and another ----------------------------------------------------------------------------------


@given(cases(), st.lists(st.floats(1, 100), min_size=6, max_size=6))
def test_more_capacity_never_hurts_those_who_have_least(case: Case, growth: list[float]) -> None:
    """Max-min rates are the lexicographic maximum of the sorted rates: larger links can only raise it.

    That is all that holds where links grow unequally; see the next test.
    """
    before = np.sort(max_min_rates(case.links, case.capacities))
    after = np.sort(max_min_rates(case.links, case.capacities * growth[: case.capacities.size]))
    differs = np.abs(after - before) > NEARLY * before
    assert not differs.any() or after[differs.argmax()] > before[differs.argmax()]


def test_more_capacity_of_one_link_can_slow_another_flow() -> None:
    """Two flows over the first link, one of them held back by the second: without that brake it takes its half."""
    routes = ((0,), (0, 1))
    assert max_min_rates(routes, np.array([10.0, 1.0])).tolist() == [9.0, 1.0]
    assert max_min_rates(routes, np.array([10.0, 10.0])).tolist() == [5.0, 5.0]


@given(cases(), st.floats(1, 100))
def test_more_capacity_of_all_links_alike_is_never_later(case: Case, factor: float) -> None:
    usual = drain(Sharing(case.capacities), case.routes, case.sizes)
    assert (drain(Sharing(case.capacities * factor), case.routes, case.sizes) <= usual * (1 + 1e-12)).all()


@given(cases(latency=False), FACTORS)
def test_times_scale_with_the_inverse_of_the_capacities(case: Case, factor: float) -> None:
    usual = drain(Sharing(case.capacities), case.routes, case.sizes)
    np.testing.assert_allclose(
        drain(Sharing(case.capacities * factor), case.routes, case.sizes), usual / factor, rtol=1e-11
    )


@given(cases(latency=False), st.integers(1, 10**6))
def test_times_scale_with_the_sizes(case: Case, factor: int) -> None:
    usual = drain(Sharing(case.capacities), case.routes, case.sizes)
    scaled = drain(Sharing(case.capacities), case.routes, [factor * size for size in case.sizes])
    np.testing.assert_allclose(scaled, usual * factor, rtol=1e-11)


@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 5000)), min_size=1, max_size=8))
def test_fewer_bytes_on_a_link_are_never_later(sizes: list[tuple[int, int]]) -> None:
    """For flows over one link; over several, one that leaves early can make room for a rival of a third."""
    sharing = Sharing(np.array([1000.0]))
    routes = [Route((0,), 0.0)] * len(sizes)
    fewer = drain(sharing, routes, [min(pair) for pair in sizes])
    assert (fewer <= drain(sharing, routes, [max(pair) for pair in sizes]) * (1 + 1e-12)).all()


@given(cases(), cases())
def test_flows_that_share_no_link_do_not_meet(one: Case, other: Case) -> None:
    """Superposition: two sets of flows on two sets of links take the times that they take alone."""
    count = one.capacities.size
    moved = [Route(tuple(link + count for link in route.links), route.latency) for route in other.routes]
    together = drain(
        Sharing(np.concatenate([one.capacities, other.capacities])), [*one.routes, *moved], one.sizes + other.sizes
    )
    alone = [drain(Sharing(case.capacities), case.routes, case.sizes) for case in (one, other)]
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=1e-11)


@given(cases(), st.randoms(use_true_random=False))
def test_the_order_of_flows_and_links_says_nothing(case: Case, random: np.random.Generator) -> None:
    flows, links = list(range(len(case.routes))), list(range(case.capacities.size))
    random.shuffle(flows)
    random.shuffle(links)
    renamed = [Route(tuple(links.index(link) for link in route.links[::-1]), route.latency) for route in case.routes]
    shuffled = drain(
        Sharing(case.capacities[links]), [renamed[flow] for flow in flows], [case.sizes[flow] for flow in flows]
    )
    usual = drain(Sharing(case.capacities), case.routes, case.sizes)
    np.testing.assert_allclose(shuffled, usual[flows], rtol=1e-11)


@given(cases(), st.floats(0, 1000))
def test_it_does_not_matter_when_flows_start_if_nothing_varies(case: Case, start: float) -> None:
    sharing = Sharing(case.capacities)
    assert simulate(sharing, case.routes, case.sizes, start) == simulate(sharing, case.routes, case.sizes)


# -- on every topology ------------------------------------------------------------------------------------------------

few = settings(max_examples=8)


def flows_on(network: Network, data: st.DataObject) -> Case:
    """Random messages between the workers of a network."""
    worker = st.integers(0, network.workers - 1)
    size = st.sampled_from([0, 10**6, 10**6 + 1, 10**7])
    messages = data.draw(st.lists(st.tuples(worker, worker, size), min_size=2, max_size=12))
    routes = tuple(network.route(source, target) for source, target, _ in messages)
    return Case(network.capacities, routes, tuple(size for *_, size in messages))


@few
@each_sample
@given(data=st.data())
def test_links_of_every_topology_are_shared_by_the_laws(sample: Sample, data: st.DataObject) -> None:
    network = sample.network
    case = flows_on(network, data)
    check_instants(network.sharing, case)
    check_bytes(network.sharing, case)
    at_once = drain(network.sharing, case.routes, case.sizes)
    np.testing.assert_allclose(simulate(network.sharing, case.routes, case.sizes), at_once, rtol=1e-11)


@few
@each_sample
@given(data=st.data())
def test_times_on_every_topology_lie_between_latency_and_one_at_a_time(sample: Sample, data: st.DataObject) -> None:
    """Never before the flow alone would come; never after all the flows one by one."""
    network = sample.network
    case = flows_on(network, data)
    times = drain(network.sharing, case.routes, case.sizes)
    alone = np.array(
        [
            drain(network.sharing, [route], [size])[0] - route.latency
            for route, size in zip(case.routes, case.sizes, strict=True)
        ]
    )
    latency = np.array([route.latency for route in case.routes])
    assert (times >= (latency + alone) * (1 - 1e-12)).all()
    assert (times <= (latency + alone.sum()) * (1 + 1e-12)).all()


@few
@each_sample
@given(data=st.data(), factor=st.floats(1, 100))
def test_headers_and_outages_do_to_every_topology_what_they_do_to_a_link(
    sample: Sample, data: st.DataObject, factor: float
) -> None:
    """Headers stretch the time on the links; an outage of all links at the start shifts all that crosses one."""
    plain = sample.network
    case = flows_on(plain, data)
    times = drain(plain.sharing, case.routes, case.sizes)
    latency = np.array([route.latency for route in case.routes])
    changed = {"mtu": 1500, "outages": (Outage(start=0, duration=factor),)}
    other = sample.topology.model_copy(update=changed).network(sample.workers)
    late = drain(other.sharing, case.routes, case.sizes)
    stopped = np.array(
        [factor if route.links and size else 0.0 for route, size in zip(case.routes, case.sizes, strict=True)]
    )
    np.testing.assert_allclose(late, latency + stopped + (times - latency) * 1538 / 1448, rtol=1e-9)

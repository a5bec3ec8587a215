"""Max-min sharing and flows in time: cases done by hand, and every way to compute them against exact arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simdist.errors import RunError
from simdist.network import FlowSimulator, Network, Route, Sharing, Star, drain, max_min_rates
from simdist.network.sharing import Floats
from simdist.network.variation import Outage, Outages
from tests.network.flow_cases import Case, cases, exact_arrivals, exact_rates, simulate, variations


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


def test_the_watcher_sees_what_is_in_use_on_each_link() -> None:
    """The same two flows: one, then both, then one, then none; the idle link stays at zero."""
    seen: list[tuple[float, list[float]]] = []
    flows = FlowSimulator(Sharing(np.array([8000.0, 1.0])), watch=lambda time, used: seen.append((time, used.tolist())))
    flows.start(0, Route((0,), 0.0), 1000, 0.0)
    flows.advance(0.5)
    flows.start(1, Route((0,), 0.0), 250, 0.5)
    flows.advance(2.0)
    assert seen == [(0.0, [8000.0, 0.0]), (0.5, [8000.0, 0.0]), (1.0, [8000.0, 0.0]), (1.25, [0.0, 0.0])]


def test_empty_messages_and_messages_at_home_take_latency_only() -> None:
    sharing = Sharing(np.array([1.0]))
    assert simulate(sharing, [Route((0,), 0.5), Route((), 0.0)], [0, 10**9]) == [0.5, 0.0]
    assert drain(sharing, [Route((0,), 0.5), Route((), 0.0)], [0, 10**9]).tolist() == [0.5, 0.0]
    assert drain(sharing, [], []).tolist() == []


@given(cases())
def test_rates_are_those_of_exact_arithmetic(case: Case) -> None:
    capacities = [Fraction(capacity) for capacity in case.capacities.tolist()]
    exact = [float(rate) for rate in exact_rates(case.links, capacities)]
    np.testing.assert_allclose(max_min_rates(case.links, case.capacities), exact, rtol=1e-12)


@given(cases())
def test_times_are_those_of_exact_arithmetic(case: Case) -> None:
    sharing = Sharing(case.capacities)
    exact = exact_arrivals(case)
    np.testing.assert_allclose(drain(sharing, case.routes, case.sizes), exact, rtol=1e-12)
    np.testing.assert_allclose(simulate(sharing, case.routes, case.sizes), exact, rtol=1e-12)


@given(cases(), st.floats(0, 1000), st.data())
def test_draining_at_once_equals_the_event_driven_simulator(case: Case, start: float, data: st.DataObject) -> None:
    sharing = Sharing(case.capacities, data.draw(variations(case.capacities.size)))
    at_once = drain(sharing, case.routes, case.sizes, start)
    np.testing.assert_allclose(simulate(sharing, case.routes, case.sizes, start), at_once, rtol=1e-11)


def ring(network: Network, hop: int = 1) -> list[Route]:
    workers = network.workers
    return [network.route(worker, (worker + hop) % workers) for worker in range(workers)]


@pytest.mark.parametrize("sizes", [[1000] * 256, [1000] * 100 + [1001] * 156], ids=["equal", "unequal"])
@pytest.mark.parametrize("crowded", [False, True], ids=["disjoint", "crowded"])
def test_symmetric_rounds_are_timed_as_the_full_simulator_does(sizes: list[int], crowded: bool) -> None:
    """A round of a large ring takes the shortcuts of :func:`drain`, alone and with a second ring that shares links."""
    network = Star(bandwidth=1e9).network(256)
    routes = ring(network) + (ring(network, 3) if crowded else [])
    sizes = sizes * (2 if crowded else 1)
    full = simulate(network.sharing, routes, sizes)
    np.testing.assert_allclose(drain(network.sharing, routes, sizes), full, rtol=1e-12)


def test_a_thousand_workers_end_their_round_in_one_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alike flows are priced without events, however many they are."""
    network = Star(bandwidth=1e9, latency=0).network(1024)
    monkeypatch.setattr("simdist.network.flows._drain_by_events", None)
    assert set(drain(network.sharing, ring(network) + ring(network, 5), [125] * 2048).tolist()) == {2e-6}


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


def test_what_is_remembered_holds_until_the_capacity_changes() -> None:
    sharing = Sharing(np.array([6.0]), Outages([Outage(start=1, duration=1)], ["cable"]))
    assert [sharing.rates(((0,),), now).tolist() for now in (0.0, 1.0, 2.0, 1.5, 0.5)] == [[6], [0], [6], [0], [6]]
    assert [sharing.next_change(now) for now in (0.0, 0.5, 1.0, 2.0)] == [1.0, 1.0, 2.0, np.inf]
    assert sharing.varies


DEAD: Floats = np.array([8.0, 0.0])


def test_a_link_that_never_comes_up_again_is_reported_and_not_waited_for() -> None:
    routes = [Route((0,), 0.0), Route((0, 1), 0.0)]
    message = "link 'cable' is down from 0 simulated seconds on and never comes up again"
    sharing = Sharing(DEAD, names=("radio", "cable"))
    with pytest.raises(RunError, match=message):
        drain(sharing, routes, [1, 1])
    with pytest.raises(RunError, match=message):
        simulate(sharing, routes, [1, 1])
    with pytest.raises(RunError, match="link 1 is down from 1 simulated"):
        drain(Sharing(DEAD, Outages([Outage(start=0, duration=1)], ["0", "1"])), routes, [1, 1])

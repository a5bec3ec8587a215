"""What a link is, beyond bandwidth and latency: headers, duplex, overhead, transfers within a host."""

from __future__ import annotations

import math
from typing import Any

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from simdist.errors import InputError
from simdist.network import LinkSettings, Network, Route, Star, drain


def line(**edge: Any) -> nx.DiGraph[str]:
    """Two hosts, a link of 1000 bit/s and 0.5 s in each direction."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    for ends in [("a", "b"), ("b", "a")]:
        graph.add_edge(*ends, **{"bandwidth": 1000.0, "latency": 0.5} | edge)
    return graph


def seconds(network: Network, *messages: tuple[int, int, int]) -> list[float]:
    """When (from, to, bytes) arrive that start together."""
    routes = [network.route(source, target) for source, target, _ in messages]
    return [float(end) for end in drain(network.sharing, routes, [size for *_, size in messages])]


# -- headers ----------------------------------------------------------------------------------------------------------


def test_full_packets_of_tcp_over_ethernet_leave_94_percent_for_payload() -> None:
    """1448 of 1538 bytes; 8948 of 9038 with jumbo frames; 1448 of 1514 as Linux tc counts."""
    assert LinkSettings(mtu=1500).efficiency == 1448 / 1538
    assert LinkSettings(mtu=9000).efficiency == 8948 / 9038
    assert LinkSettings(mtu=1500, frame_bytes=14).efficiency == 1448 / 1514
    assert LinkSettings().efficiency == 1.0


@given(st.integers(53, 10**5), st.integers(0, 52), st.integers(0, 100))
def test_efficiency_is_a_share_that_grows_with_the_packet(mtu: int, header: int, frame: int) -> None:
    small, large = (
        LinkSettings(mtu=size, header_bytes=header, frame_bytes=frame).efficiency for size in (mtu, 2 * mtu)
    )
    assert 0 < small <= large <= 1


def test_headers_make_the_capacity_and_the_time_of_a_network() -> None:
    network = Star(bandwidth=1e8, latency=0, mtu=1500).network(2)
    assert network.capacities.tolist() == [1e8 * 1448 / 1538] * 4
    assert seconds(network, (0, 1, 10**6)) == [pytest.approx(0.08 * 1538 / 1448, rel=1e-12)]


# -- duplex -----------------------------------------------------------------------------------------------------------


def test_full_duplex_links_carry_both_ways_at_once() -> None:
    assert seconds(Network(line(), "ab"), (0, 1, 125), (1, 0, 125)) == [1.5, 1.5]


@pytest.mark.parametrize(
    ("edge", "settings"), [({}, LinkSettings(duplex="half")), ({"duplex": "half"}, LinkSettings())]
)
def test_half_duplex_links_share_one_capacity(edge: dict[str, str], settings: LinkSettings) -> None:
    network = Network(line(**edge), "ab", links=settings)
    assert network.links == ("a<->b",)
    assert network.capacities.tolist() == [1000.0]
    assert seconds(network, (0, 1, 125), (1, 0, 125)) == [2.5, 2.5]
    assert seconds(network, (0, 1, 125)) == [1.5]


def test_the_duplex_of_an_edge_goes_before_that_of_the_settings() -> None:
    assert Network(line(duplex="full"), "ab", links=LinkSettings(duplex="half")).links == ("a->b", "b->a")


def test_a_half_duplex_link_has_one_bandwidth() -> None:
    graph = line()
    graph.edges["b", "a"]["bandwidth"] = 500.0
    assert Network(graph, "ab").capacities.tolist() == [1000.0, 500.0]
    with pytest.raises(
        InputError, match="1000 and 500 for the two directions of link 'b' -> 'a', which is half-duplex"
    ):
        Network(graph, "ab", links=LinkSettings(duplex="half"))


# -- overhead, hosts --------------------------------------------------------------------------------------------------


def test_each_message_between_hosts_takes_its_overhead_once() -> None:
    network = Network(line(), "aab", links=LinkSettings(message_overhead="250ms"))
    assert seconds(network, (0, 2, 125)) == [1.75]
    assert seconds(network, (0, 2, 0)) == [0.75]
    assert network.route(0, 1) == ((), 0.0)


def test_workers_of_one_host_exchange_at_once_over_no_link() -> None:
    network = Network(line(), "aab")
    assert network.route(0, 1) == ((), 0.0)
    assert network.links == ("a->b", "b->a")
    assert network.workers == 3


def test_transfers_within_a_host_share_its_bandwidth() -> None:
    """Two at once halve it; those within the other host and between hosts are not touched."""
    settings = LinkSettings(host_bandwidth=2000, host_latency=0.25, mtu=1500)
    network = Network(line(), "aabb", links=settings)
    assert network.links == ("a->b", "b->a", "a inside", "b inside")
    assert network.capacities.tolist()[2:] == [2000, 2000]
    assert network.route(0, 1) == Route((2,), 0.25)
    assert seconds(network, (0, 1, 125)) == [0.75]
    assert seconds(network, (0, 1, 125), (1, 0, 125), (2, 3, 125))[:2] == [1.25, 1.25]
    assert seconds(network, (0, 1, 125), (1, 0, 125), (2, 3, 125))[2] == 0.75
    assert network.route(1, 1) == ((), 0.0)


def test_a_host_with_one_worker_has_nothing_inside() -> None:
    assert Network(line(), "ab", links=LinkSettings(host_bandwidth=2000)).links == ("a->b", "b->a")


def test_latency_within_a_host_needs_no_bandwidth() -> None:
    assert Network(line(), "aab", links=LinkSettings(host_latency=0.25)).route(0, 1) == ((), 0.25)


# -- names, islands, bad input ----------------------------------------------------------------------------------------


def test_links_are_named_after_their_ends_or_as_they_say() -> None:
    assert set(Star().network(2).links) == {"host0->switch", "switch->host0", "host1->switch", "switch->host1"}
    assert Network(line(name="cable"), "ab").links == ("cable", "cable")


def test_workers_are_on_one_island_unless_told_otherwise() -> None:
    assert Network(line(), "ab").islands == (0, 0)
    assert Network(line(), "ab", islands=[0, 1]).islands == (0, 1)


@pytest.mark.parametrize(
    ("edge", "message"),
    [
        ({"bandwidth": None}, "got bandwidth None on link 'a' -> 'b'; expected a number"),
        ({"bandwidth": "fast"}, "got bandwidth 'fast' on link 'a' -> 'b'; expected a number"),
        ({"bandwidth": math.nan}, "got bandwidth nan"),
        ({"latency": math.inf}, "got latency inf"),
        ({"bandwidth": 0}, "got bandwidth 0 and latency 0.5 on link 'a' -> 'b'; expected a bandwidth above zero"),
        ({"latency": -1}, "got bandwidth 1000 and latency -1 on link 'a' -> 'b'; expected .* latency of zero or more"),
    ],
)
def test_links_without_sensible_numbers_are_refused(edge: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Network(line(**edge), "ab")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mtu": 0}, "number above zero"),
        ({"mtu": 52}, "got mtu 52 with header_bytes 52, which leaves no room for payload"),
        ({"header_bytes": -1}, "zero or more"),
        ({"duplex": "simplex"}, "'full' or 'half'"),
        ({"host_bandwidth": "1GB/s"}, "counts bytes"),
        ({"host_bandwidth": 0}, "above zero"),
        ({"message_overhead": -1}, "zero or more"),
        ({"jitter": {"sigma": 0.1, "every": 1}, "trace": {"path": "t.csv"}}, "got both jitter and trace"),
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LinkSettings(**wrong)

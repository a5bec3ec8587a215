"""Routes are shortest paths, held against networkx; ECMP spreads pairs over all of them."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise, product

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simdist.network import Dragonfly, FatTree, Network, RailOptimised, Star, Topology, Torus
from simdist.network.routing import Routes
from tests.network.catalogue import Sample, each_sample


def indexed(graph: nx.DiGraph[str]) -> dict[tuple[str, str], int]:
    return {link: index for index, link in enumerate(graph.edges)}


def shortest_paths(graph: nx.DiGraph[str], source: str, target: str) -> list[tuple[str, ...]]:
    """All paths of least latency and, of these, fewest hops, by networkx; latencies are whole numbers of seconds."""
    costs = graph.copy()
    for _, _, data in costs.edges(data=True):
        data["cost"] = int(data["latency"]) * len(graph) + 1
    return [tuple(path) for path in nx.all_shortest_paths(costs, source, target, "cost")]


@st.composite
def graphs(draw: st.DrawFn) -> nx.DiGraph[str]:
    """Strongly connected graphs whose links have latencies of 0 to 2 s, so that many paths tie."""
    size = draw(st.integers(2, 8))
    order = [f"n{node}" for node in draw(st.permutations(range(size)))]
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(f"n{node}" for node in range(size))
    more = draw(st.lists(st.sampled_from([pair for pair in product(order, order) if pair[0] != pair[1]]), max_size=20))
    for one, other in [*pairwise([*order, order[0]]), *more]:
        graph.add_edge(one, other, bandwidth=1.0, latency=float(draw(st.integers(0, 2))))
    return graph


# -- laws of all topologies -------------------------------------------------------------------------------------------


@each_sample
def test_routes_are_simple_paths_of_least_latency(sample: Sample) -> None:
    graph = sample.topology.graph(sample.topology.hosts_needed(sample.workers))
    network = sample.network
    link_of = indexed(graph)
    routes = Routes(graph, link_of, sample.topology.routing, sample.topology.ecmp_seed)
    least = dict(nx.all_pairs_dijkstra_path_length(graph, weight="latency"))
    for source, target in product(dict.fromkeys(network.hosts), repeat=2):
        path = routes.path(source, target)
        links, latency = routes.route(source, target)
        assert (path[0], path[-1]) == (source, target)
        assert len(set(path)) == len(path)
        assert links == tuple(link_of[hop] for hop in pairwise(path))
        assert latency == math.fsum(graph.edges[hop]["latency"] for hop in pairwise(path))
        assert latency == pytest.approx(least[source][target], rel=1e-12, abs=1e-18)


@each_sample
def test_routes_of_workers_are_those_of_their_hosts(sample: Sample) -> None:
    graph = sample.topology.graph(sample.topology.hosts_needed(sample.workers))
    network = sample.network
    routes = Routes(graph, indexed(graph), sample.topology.routing, sample.topology.ecmp_seed)
    rates = [data["bandwidth"] for _, _, data in graph.edges(data=True)]
    for worker in range(1, sample.workers):
        links, latency = routes.route(network.hosts[0], network.hosts[worker])
        route = network.route(0, worker)
        assert route.latency == latency
        assert network.capacities[list(route.links)].tolist() == [rates[link] for link in links]


@each_sample
def test_there_and_back_take_equally_long_where_links_are_alike(sample: Sample) -> None:
    if sample.symmetric:
        network = sample.network
        for one, other in product(range(sample.workers), repeat=2):
            assert network.route(one, other).latency == network.route(other, one).latency
            assert len(network.route(one, other).links) == len(network.route(other, one).links)


# -- laws of any graph ------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(graphs())
def test_shortest_takes_the_path_whose_nodes_come_first_in_the_graph(graph: nx.DiGraph[str]) -> None:
    order = list(graph)
    routes = Routes(graph, indexed(graph))
    for source, target in product(order, repeat=2):
        first = min(shortest_paths(graph, source, target), key=lambda path: [order.index(node) for node in path])
        assert routes.path(source, target) == first


@settings(max_examples=50)
@given(graphs(), st.integers(0, 5))
def test_ecmp_takes_one_of_the_shortest_paths_and_stays_with_it(graph: nx.DiGraph[str], seed: int) -> None:
    routes, again = (Routes(graph, indexed(graph), "ecmp", seed) for _ in range(2))
    pairs = list(product(graph, repeat=2))
    chosen = {pair: routes.path(*pair) for pair in pairs}
    for pair in pairs:
        assert chosen[pair] in shortest_paths(graph, *pair)
    # whatever was asked before, and in whatever order
    assert {pair: again.path(*pair) for pair in reversed(pairs)} == chosen


@settings(max_examples=20)
@given(graphs())
def test_ecmp_finds_every_shortest_path_by_some_seed(graph: nx.DiGraph[str]) -> None:
    source, target = "n0", f"n{len(graph) - 1}"
    paths = shortest_paths(graph, source, target)
    # one of k is missed by 25 k draws with a probability of e^-25
    found = {Routes(graph, indexed(graph), "ecmp", seed).path(source, target) for seed in range(25 * len(paths))}
    assert found == set(paths)


# -- by hand ----------------------------------------------------------------------------------------------------------


def test_routes_take_the_least_latency_then_the_fewest_hops_then_the_first_node() -> None:
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(["a", "b", "x", "y", "z"])
    for one, other in [("a", "y"), ("y", "b"), ("a", "x"), ("x", "b")]:
        graph.add_edge(one, other, latency=1.0)
    graph.add_edge("a", "b", latency=3.0)
    assert Routes(graph, indexed(graph)).path("a", "b") == ("a", "x", "b")
    graph.edges["a", "b"]["latency"] = 2.0
    assert Routes(graph, indexed(graph)).path("a", "b") == ("a", "b")


def test_paths_tie_whatever_the_order_in_which_their_latencies_are_added() -> None:
    """0.1 + 0.2 + 0.3 is not 0.3 + 0.2 + 0.1 in floats; the first nodes win all the same."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(["a", "b", *"uvxy"])
    for path, latencies in [("auvb", (0.3, 0.2, 0.1)), ("axyb", (0.1, 0.2, 0.3))]:
        for hop, latency in zip(pairwise(path), latencies, strict=True):
            graph.add_edge(*hop, latency=latency)
    assert 0.1 + 0.2 + 0.3 != 0.3 + 0.2 + 0.1
    assert Routes(graph, indexed(graph)).path("a", "b") == ("a", "u", "v", "b")
    assert {Routes(graph, indexed(graph), "ecmp", seed).path("a", "b")[1] for seed in range(20)} == {"u", "x"}


def test_routes_pass_through_other_hosts_where_there_is_no_other_way() -> None:
    graph: nx.DiGraph[str] = nx.DiGraph()
    for one, other in [("host0", "host1"), ("host1", "host2")]:
        for link in [(one, other), (other, one)]:
            graph.add_edge(*link, bandwidth=1.0, latency=1.0)
    network = Network(graph, ("host0", "host1", "host2"))
    assert network.route(0, 2).latency == 2.0
    assert len(network.route(2, 0).links) == 2


def test_two_nodes_that_have_only_each_other_are_joined() -> None:
    graph: nx.DiGraph[str] = nx.DiGraph([("a", "b", {"latency": 1.0}), ("b", "a", {"latency": 2.0})])
    routes = Routes(graph, indexed(graph))
    assert routes.route("a", "b") == ((0,), 1.0)
    assert routes.route("b", "a") == ((1,), 2.0)
    assert routes.route("a", "a") == ((), 0.0)


def test_one_direction_of_a_link_does_not_make_a_way_back() -> None:
    """A node with one way out and another way in is on a ring, not at its end."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    nx.add_cycle(graph, ["a", "b", "c"], latency=1.0)
    routes = Routes(graph, indexed(graph))
    assert routes.path("b", "a") == ("b", "c", "a")


def test_ecmp_spreads_the_pairs_of_pods_over_all_core_switches() -> None:
    """A fat-tree of 4 ports has 4 paths between pods; 192 pairs: 48 each, within four standard deviations (6)."""
    graph = FatTree().graph(16)
    routes = Routes(graph, indexed(graph), "ecmp")
    hosts = FatTree().hosts(16)
    pairs = [(a, b) for a, b in product(range(16), repeat=2) if a // 4 != b // 4]
    cores = Counter(routes.path(hosts[a], hosts[b])[3] for a, b in pairs)
    assert set(cores) == {f"core{index}" for index in range(4)}
    assert all(abs(count - 48) <= 24 for count in cores.values())
    shortest = Routes(graph, indexed(graph))
    assert {shortest.path(hosts[a], hosts[b])[3] for a, b in pairs} == {"core0"}


def test_the_hash_is_the_same_on_every_machine() -> None:
    network = FatTree(ecmp_seed=7).network(16)
    cores = [network.links[network.route(0, to).links[2]].split("->")[1] for to in range(4, 16)]
    assert cores == [f"core{index}" for index in (0, 3, 1, 3, 1, 3, 0, 3, 2, 1, 1, 2)]


@pytest.mark.parametrize(
    "topology",
    [
        Star(),
        FatTree(),
        Torus(dims=(8, 8, 16)),
        RailOptimised(),
        Dragonfly(routers=8, hosts_per_router=4, global_links=4),
    ],
    ids=lambda topology: topology.topology,
)
def test_a_thousand_hosts_are_routed_in_a_moment(topology: Topology) -> None:
    network = topology.network(1024)
    assert all(network.route(worker, (worker + 1) % 1024).links for worker in range(1024))

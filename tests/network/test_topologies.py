"""Hosts, links and routes of each topology, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
from pydantic import ValidationError

from simdist.errors import InputError
from simdist.network import FromFile, Network, Star, TwoLevel, topologies


def names(network: Network, source: int, target: int) -> list[tuple[str, str]]:
    return [network.links[link] for link in network.route(source, target).links]


def test_the_registry_knows_each_topology_by_its_own_name() -> None:
    assert set(topologies.names()) == {"star", "two-level", "file"}
    for name, kind in topologies.items():
        assert kind.model_fields["topology"].default == name


def test_star_joins_every_worker_to_the_switch_by_its_own_links() -> None:
    network = Star(bandwidth="100Mbit/s", latency="1ms").network(3)
    assert set(network.capacities.tolist()) == {1e8}
    assert len(network.links) == 6
    assert names(network, 0, 2) == [("worker0", "switch"), ("switch", "worker2")]
    assert network.route(0, 2).latency == 2e-3


def test_two_level_shares_the_island_s_uplink() -> None:
    topology = TwoLevel(island_size=2, bandwidth=1e8, latency=1e-3, island_bandwidth=1e11, island_latency=1e-6)
    network = topology.network(4)
    assert names(network, 0, 1) == [("worker0", "island0"), ("island0", "worker1")]
    assert names(network, 1, 2) == [
        ("worker1", "island0"),
        ("island0", "core"),
        ("core", "island1"),
        ("island1", "worker2"),
    ]
    assert network.route(1, 2).latency == pytest.approx(2e-3 + 2e-6, rel=1e-12)
    capacity = dict(zip(network.links, network.capacities.tolist(), strict=True))
    assert capacity["island0", "core"] == 1e8
    assert capacity["worker0", "island0"] == 1e11


def test_two_level_refuses_islands_that_do_not_divide_the_workers() -> None:
    with pytest.raises(InputError, match=r"island_size 4 for 6 workers; .* such as 3"):
        TwoLevel(island_size=4).network(6)


@pytest.mark.parametrize(
    "wrong",
    [{"bandwidth": 0}, {"bandwidth": "100MB/s"}, {"latency": -1}, {"latency": float("nan")}, {"mode": "real"}],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Star(**wrong)


def test_routes_take_the_least_latency_then_the_fewest_hops_then_the_first_node() -> None:
    graph: nx.DiGraph[str] = nx.DiGraph()
    link = {"bandwidth": 1.0, "latency": 1.0}
    graph.add_nodes_from(["a", "b", "x", "y", "z"])
    for one, other in [("a", "y"), ("y", "b"), ("a", "x"), ("x", "b")]:
        graph.add_edge(one, other, **link)
    graph.add_edge("a", "b", bandwidth=1.0, latency=3.0)
    graph.add_edge("b", "a", bandwidth=1.0, latency=0.0)
    network = Network(graph, ("a", "b"))
    assert names(network, 0, 1) == [("a", "x"), ("x", "b")]
    graph.edges["a", "b"]["latency"] = 2.0
    assert names(Network(graph, ("a", "b")), 0, 1) == [("a", "b")]


def test_routes_pass_through_other_hosts_where_there_is_no_other_way() -> None:
    graph: nx.DiGraph[str] = nx.DiGraph()
    for one, other in [("worker0", "worker1"), ("worker1", "worker2")]:
        for edge in [(one, other), (other, one)]:
            graph.add_edge(*edge, bandwidth=1.0, latency=1.0)
    network = Network(graph, ("worker0", "worker1", "worker2"))
    assert network.route(0, 2).latency == 2.0
    assert len(network.route(2, 0).links) == 2


def test_two_workers_on_one_host_need_no_link() -> None:
    graph = Star().graph(2)
    network = Network(graph, ("worker0", "worker0", "worker1"))
    assert network.route(0, 1) == ((), 0.0)
    assert network.workers == 3


def write(path: Path, graph: dict[str, Any]) -> FromFile:
    path.write_text(json.dumps(graph))
    return FromFile(path=str(path))


def edge(source: str, target: str, **data: Any) -> dict[str, Any]:
    return {"source": source, "target": target, "bandwidth": "1Gbit/s", "latency": "5ms"} | data


NODES = [{"id": "worker0"}, {"id": "worker1"}, {"id": "hub"}]
EDGES = [edge("worker0", "hub"), edge("hub", "worker1", bandwidth=2e9, latency=0.001)]


@pytest.mark.parametrize("key", ["edges", "links"])
def test_json_files_give_links_in_both_directions(tmp_path: Path, key: str) -> None:
    network = write(tmp_path / "net.json", {"nodes": NODES, key: EDGES}).network(2)
    assert network.route(0, 1).latency == network.route(1, 0).latency == 0.006
    assert sorted(network.capacities.tolist()) == [1e9, 1e9, 2e9, 2e9]


def test_directed_files_keep_their_directions(tmp_path: Path) -> None:
    back = [edge("worker1", "worker0", latency=0.5)]
    network = write(tmp_path / "net.json", {"directed": True, "nodes": NODES, "edges": EDGES + back}).network(2)
    assert network.route(1, 0).latency == 0.5
    assert network.route(0, 1).latency == 0.006


def test_graphml_files_are_read(tmp_path: Path) -> None:
    graph: nx.Graph[str] = nx.Graph()
    graph.add_edge("worker0", "worker1", bandwidth="10Gbit/s", latency="1ms")
    path = tmp_path / "net.graphml"
    nx.write_graphml_xml(graph, path)
    network = FromFile(path=str(path)).network(2)
    assert network.capacities.tolist() == [1e10, 1e10]
    assert network.route(0, 1).latency == 1e-3


def test_nodes_can_say_which_workers_they_hold(tmp_path: Path) -> None:
    nodes = [{"id": "north", "worker": "0,2"}, {"id": "south", "worker": 1}]
    topology = write(tmp_path / "net.json", {"nodes": nodes, "edges": [edge("north", "south")]})
    assert topology.hosts(3) == ("north", "south", "north")
    assert topology.network(3).route(0, 2).links == ()


def test_bandwidth_and_latency_of_the_scenario_limit_every_link_of_the_file(tmp_path: Path) -> None:
    write(tmp_path / "net.json", {"nodes": NODES, "edges": EDGES})
    network = FromFile(path=str(tmp_path / "net.json"), bandwidth=1.5e9, latency=0.004).network(2)
    assert sorted(network.capacities.tolist()) == [1e9, 1e9, 1.5e9, 1.5e9]
    assert network.route(0, 1).latency == pytest.approx(0.009)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        ({"nodes": NODES, "edges": EDGES[:1]}, "disconnected network: host 'worker0' cannot reach host 'worker1'"),
        ({"directed": True, "nodes": NODES, "edges": EDGES}, "host 'worker1' cannot reach host 'worker0'"),
        ({"nodes": NODES[:1], "edges": []}, "without the host 'worker1' of worker 1"),
        ({"nodes": NODES, "edges": [{"source": "worker0", "target": "hub", "latency": 0}]}, "no bandwidth on edge"),
        ({"nodes": NODES, "edges": [edge("worker0", "hub", bandwidth=0)]}, "got bandwidth 0 on edge 'worker0' - 'hub'"),
        ({"nodes": NODES, "edges": [edge("worker0", "hub", bandwidth="10MB/s")]}, "counts bytes"),
        ({"nodes": NODES, "edges": [{"source": "worker0", "target": "hub", "bandwidth": 1}]}, "no latency on edge"),
        ({"nodes": NODES, "edges": [edge("worker0", "hub", latency=-1)]}, "got latency -1"),
        ({"nodes": NODES, "edges": [edge("worker0", "hub", latency="soon")]}, "latency on edge .*'soon'"),
        ({"nodes": NODES, "edges": [edge("worker0", "moon")]}, "edge to 'moon'"),
        ({"nodes": NODES, "edges": EDGES + EDGES}, "parallel edges"),
        ({"nodes": [{"id": "a", "worker": 0}, {"id": "b", "worker": 0}], "edges": []}, "worker 0 on two nodes"),
        ({"nodes": [{"id": "a", "worker": "one"}], "edges": []}, "worker='one'"),
        ({"vertices": []}, "not node-link JSON"),
        ([], "not node-link JSON"),
    ],
)
def test_bad_files_are_refused_with_the_reason(tmp_path: Path, graph: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        write(tmp_path / "net.json", graph).network(2)


def test_files_that_are_missing_or_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        FromFile(path=str(tmp_path / "none.json")).network(2)
    (tmp_path / "net.dot").write_text("graph {}")
    with pytest.raises(InputError, match=r"ends in \.graphml or \.json"):
        FromFile(path=str(tmp_path / "net.dot")).network(2)
    (tmp_path / "net.graphml").write_text("no xml")
    with pytest.raises(InputError, match="not GraphML"):
        FromFile(path=str(tmp_path / "net.graphml")).network(2)

"""Networks from files: what is read, and what is refused with the file and the link."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import networkx as nx
import pytest

from simdist.errors import InputError
from simdist.network import FromFile

NODES = [{"id": "worker0"}, {"id": "worker1"}, {"id": "hub"}]


def edge(source: str, target: str, **data: Any) -> dict[str, Any]:
    return {"source": source, "target": target, "bandwidth": "1Gbit/s", "latency": "5ms"} | data


EDGES = [edge("worker0", "hub"), edge("hub", "worker1", bandwidth=2e9, latency=0.001)]


def write(path: Path, graph: Any) -> FromFile:
    path.write_text(graph if isinstance(graph, str) else json.dumps(graph))
    return FromFile(path=str(path))


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
    graph.add_edge("host0", "host1", bandwidth="10Gbit/s", latency="1ms")
    path = tmp_path / "net.graphml"
    nx.write_graphml_xml(graph, path)
    network = FromFile(path=str(path)).network(2)
    assert network.capacities.tolist() == [1e10, 1e10]
    assert network.route(0, 1).latency == 1e-3


def test_yaml_files_list_hosts_by_cluster_and_links_with_units() -> None:
    network = FromFile(path=str(Path(__file__).with_name("cities.yaml"))).network(3)
    assert network.hosts == ("paris", "rome", "boston")
    assert network.islands == (0, 0, 1)
    assert network.route(1, 2).latency == pytest.approx(0.012 + 0.005 + 0.04)
    assert "cable" in network.links
    assert network.route(0, 2).links[-1] == network.route(2, 0).links[0]


def test_yaml_hosts_can_be_a_plain_list(tmp_path: Path) -> None:
    text = "hosts: [a, b]\nlinks:\n- {from: a, to: b, bandwidth: 1e6, latency: 0, name: wire}"
    network = write(tmp_path / "net.yml", text).network(2)
    assert network.links == ("wire", "wire back")
    assert network.islands == (0, 1)
    shared = FromFile(path=str(tmp_path / "net.yml"), duplex="half").network(2)
    assert shared.links == ("wire",)


def test_nodes_can_say_which_workers_they_hold(tmp_path: Path) -> None:
    nodes = [{"id": "north", "worker": "0,2"}, {"id": "south", "worker": 1}]
    topology = write(tmp_path / "net.json", {"nodes": nodes, "edges": [edge("north", "south")]})
    assert topology.hosts(3) == ("north", "south", "north")
    assert topology.network(3).route(0, 2).links == ()


def test_nodes_can_say_what_they_are_near_to(tmp_path: Path) -> None:
    nodes = [{"id": f"host{i}", "cluster": "ab"[i % 2]} for i in range(4)]
    edges = [edge(f"host{i}", f"host{i + 1}") for i in range(3)]
    topology = write(tmp_path / "net.json", {"nodes": nodes, "edges": edges})
    assert topology.clusters(4) == (("host0", "host2"), ("host1", "host3"))
    assert topology.network(4).islands == (0, 1, 0, 1)


def test_bandwidth_and_latency_of_the_scenario_limit_every_link_of_the_file(tmp_path: Path) -> None:
    write(tmp_path / "net.json", {"nodes": NODES, "edges": EDGES})
    network = FromFile(path=str(tmp_path / "net.json"), bandwidth=1.5e9, latency=0.004).network(2)
    assert sorted(network.capacities.tolist()) == [1e9, 1e9, 1.5e9, 1.5e9]
    assert network.route(0, 1).latency == pytest.approx(0.009)


def test_cycles_are_no_mistake(tmp_path: Path) -> None:
    edges = [*EDGES, edge("worker0", "worker1", latency=1)]
    assert write(tmp_path / "net.json", {"nodes": NODES, "edges": edges}).network(2).route(0, 1).latency == 0.006


LINK = "link 'worker0' - 'hub' of .*net.json"


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        ({"nodes": NODES, "edges": EDGES[:1]}, "disconnected network: host 'worker0' cannot reach host 'worker1'"),
        ({"directed": True, "nodes": NODES, "edges": EDGES}, "host 'worker1' cannot reach host 'worker0'"),
        ({"nodes": NODES[:1], "edges": []}, r"no node for host 1 of 2 in .*net.json; .* 'worker1'"),
        ({"nodes": NODES, "edges": [{"source": "worker0", "target": "hub", "latency": 0}]}, f"no bandwidth on {LINK}"),
        ({"nodes": NODES, "edges": [edge("worker0", "hub", bandwidth=0)]}, f"got bandwidth 0 on {LINK}"),
        ({"nodes": NODES, "edges": [edge("worker0", "hub", bandwidth=-5)]}, f"got bandwidth -5 on {LINK}"),
        ({"nodes": NODES, "edges": [edge("worker0", "hub", bandwidth="10MB/s")]}, f"on {LINK}: .*counts bytes"),
        ({"nodes": NODES, "edges": [edge("worker0", "hub", bandwidth=None)]}, f"on {LINK}: got None"),
        ({"nodes": NODES, "edges": [{"source": "worker0", "target": "hub", "bandwidth": 1}]}, f"no latency on {LINK}"),
        ({"nodes": NODES, "edges": [edge("worker0", "hub", latency=-1)]}, f"got latency -1 on {LINK}"),
        ({"nodes": NODES, "edges": [edge("worker0", "hub", latency="soon")]}, f"latency on {LINK}: .*'soon'"),
        ({"nodes": NODES, "edges": [edge("worker0", "hub", duplex="both")]}, f"got duplex 'both' on {LINK}"),
        ({"nodes": NODES, "edges": [edge("hub", "hub")]}, "link from 'hub' to itself in .*net.json"),
        ({"nodes": NODES, "edges": [edge("worker0", "hug")]}, "link to 'hug' in .*net.json.* mean 'hub'"),
        ({"nodes": NODES, "edges": EDGES + EDGES}, "parallel links between 'worker0' and 'hub' in .*net.json"),
        ({"nodes": [{"id": "a", "worker": 0}, {"id": "b", "worker": 0}], "edges": []}, "worker 0 on two nodes"),
        ({"nodes": [{"id": "a", "worker": "one"}], "edges": []}, "worker='one' on node 'a'"),
        ({"nodes": [{"id": "a", "worker": -1}], "edges": []}, "worker=-1 on node 'a'"),
        ({"vertices": []}, "not node-link JSON"),
        ([], "not node-link JSON"),
        ("{", "not node-link JSON"),
    ],
)
def test_bad_json_is_refused_with_the_reason(tmp_path: Path, graph: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        write(tmp_path / "net.json", graph).network(2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hosts: [a, b]", "net.yaml: got no 'links'"),
        ("hosts: [a, b]\nlinks: []\nroutes: []", "unknown key 'routes'"),
        ("hosts: [a, b]\nlinks: [{from: a, to: b, bandwith: 1, latency: 0}]", r"links\.0: .*'bandwith'.* 'bandwidth'"),
        ("hosts: [a, b]\nlinks: [{from: a, bandwidth: 1, latency: 0}]", r"links\.0: got no 'to'"),
        ("hosts: [a, b]\nlinks: [{from: a, to: c, bandwidth: 1, latency: 0}]", "link to 'c'"),
        ("hosts: [a, b]\nlinks: [{from: a, to: a, bandwidth: 1, latency: 0}]", "from 'a' to itself"),
        ("hosts: [a, b]\nlinks: {a: b}", r"links: got \{'a': 'b'\}; expected a list of links"),
        ("hosts: [a, b]\nlinks: [a]", r"links\.0: got 'a'; expected a section"),
        ("hosts: [a, a]\nlinks: []", "'a' twice among the hosts and switches"),
        ("hosts: [a, b]\nswitches: [b]\nlinks: []", "'b' twice among the hosts and switches"),
        ("hosts: a\nlinks: []", "hosts: got 'a'; expected a list of names"),
        ("hosts: {east: a}\nlinks: []", r"hosts\.east: got 'a'; expected a list of names"),
        ("hosts: [a, b]\nlinks: []\ndirected: 1", "directed: got 1; expected true or false"),
        ("hosts: [a, b]\nlinks: []", "host 'a' cannot reach host 'b'"),
        ("hosts: [a]\nlinks: []", "no node for host 1 of 2"),
        ("[1", "not valid YAML"),
        ("3", "got 3; expected a section"),
    ],
)
def test_bad_yaml_is_refused_with_the_reason(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        write(tmp_path / "net.yaml", text).network(2)


GRAPHML = """<graphml xmlns="http://graphml.graphdrawing.org/xmlns"><graph edgedefault="undirected">
<node id="host0"/><node id="host1"/><edge source="host0" target="host1"/>{more}</graph></graphml>"""


def test_bad_graphml_is_refused_with_the_reason(tmp_path: Path) -> None:
    for text, message in [
        ("no xml", "not GraphML"),
        (GRAPHML.format(more=""), "no bandwidth on link 'host0' - 'host1'"),
        (GRAPHML.format(more='<edge source="host0" target="host1"/>'), "parallel links between 'host0' and 'host1'"),
    ]:
        with pytest.raises(InputError, match=message):
            write(tmp_path / "net.graphml", text).network(2)


def test_files_that_are_missing_or_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        FromFile(path=str(tmp_path / "none.json")).network(2)
    with pytest.raises(InputError, match=r"ends in \.graphml or \.xml, \.json, or \.yaml or \.yml"):
        write(tmp_path / "net.dot", "graph {}").network(2)
    (tmp_path / "net.json").write_bytes(b"\xff")
    with pytest.raises(InputError, match="UTF-8"):
        FromFile(path=str(tmp_path / "net.json")).network(2)

"""Laws that hold for every topology, for those that came through a file, and for a user's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import networkx as nx
import pytest

from simdist.choosing import plain
from simdist.errors import InputError
from simdist.network import FromFile, Topology, topologies
from simdist.registry import summary_of
from simdist.yaml_text import dump, parse
from tests.network.catalogue import SAMPLES, Sample, crossed, each_sample


def test_the_catalogue_has_every_topology() -> None:
    assert {sample.topology.topology for sample in SAMPLES.values()} == set(topologies.names())


def test_every_topology_is_registered_by_its_own_name_and_says_what_it_is_in_a_line() -> None:
    lines = [summary_of(kind) for _, kind in topologies.items()]
    assert len(set(lines)) == len(lines)
    assert all(line.endswith(".") for line in lines)
    for name, kind in topologies.items():
        assert kind.model_fields["topology"].default == name


@each_sample
def test_graphs_are_deterministic(sample: Sample) -> None:
    one, other = (sample.topology.graph(sample.workers) for _ in range(2))
    assert list(one.nodes()) == list(other.nodes())
    assert list(one.edges(data=True)) == list(other.edges(data=True))


@each_sample
def test_settings_survive_a_saved_scenario(sample: Sample) -> None:
    saved = parse(dump(plain(sample.topology, [])), "a test")
    assert type(sample.topology).model_validate(saved) == sample.topology


@each_sample
def test_every_worker_has_a_host_and_every_host_one_cluster(sample: Sample) -> None:
    topology, network = sample.topology, sample.network
    count = topology.hosts_needed(sample.workers)
    hosts = topology.hosts(count)
    assert len(network.hosts) == len(network.islands) == sample.workers
    assert set(network.hosts) <= set(hosts) <= set(topology.graph(count))
    assert sorted(host for cluster in topology.clusters(count) for host in cluster) == sorted(hosts)


@each_sample
def test_hosts_are_joined_and_no_link_leads_back_to_where_it_starts(sample: Sample) -> None:
    graph = sample.topology.graph(sample.topology.hosts_needed(sample.workers))
    assert nx.is_strongly_connected(graph)
    assert nx.number_of_selfloops(graph) == 0


@each_sample
def test_workers_of_an_island_are_no_farther_from_each_other_than_from_others(sample: Sample) -> None:
    network = sample.network
    pairs = [(a, b) for a in range(sample.workers) for b in range(sample.workers) if a != b]
    near = [network.route(a, b).latency for a, b in pairs if network.islands[a] == network.islands[b]]
    far = [network.route(a, b).latency for a, b in pairs if network.islands[a] != network.islands[b]]
    assert not near or not far or max(near) <= min(far)


@each_sample
def test_directions_are_alike_where_links_are(sample: Sample) -> None:
    graph = sample.topology.graph(sample.topology.hosts_needed(sample.workers))
    assert sample.symmetric == all(
        graph.edges[one, other] == graph.edges.get((other, one)) for one, other in graph.edges
    )


def to_json(graph: nx.DiGraph[str], hosts: tuple[str, ...], path: Path) -> Path:
    nodes = [{"id": node} | ({"worker": hosts.index(node)} if node in hosts else {}) for node in graph]
    edges = [{"source": one, "target": other, **data} for one, other, data in graph.edges(data=True)]
    path.write_text(json.dumps({"directed": True, "nodes": nodes, "edges": edges}))
    return path


def to_graphml(graph: nx.DiGraph[str], hosts: tuple[str, ...], path: Path) -> Path:
    graph = graph.copy()
    nx.set_node_attributes(graph, {host: place for place, host in enumerate(hosts)}, "worker")
    for _, data in graph.nodes(data=True):
        data.pop("cluster", None)  # GraphML has no null
    nx.write_graphml_xml(graph, path)
    return path


def to_yaml(graph: nx.DiGraph[str], hosts: tuple[str, ...], path: Path) -> Path:
    switches = [node for node in graph if node not in hosts]
    links = [{"from": one, "to": other, **data} for one, other, data in graph.edges(data=True)]
    path.write_text(dump({"directed": True, "hosts": list(hosts), "switches": switches, "links": links}))
    return path


def ends(link: str) -> str:
    """The name of a link; of one that both directions share, whichever came first in the graph."""
    return "<->".join(sorted(link.split("<->")))


@pytest.mark.parametrize(("write", "ending"), [(to_json, "json"), (to_graphml, "graphml"), (to_yaml, "yaml")])
@each_sample
def test_a_network_that_went_through_a_file_has_the_same_routes_and_rates(
    sample: Sample, write: Callable[..., Path], ending: str, tmp_path: Path
) -> None:
    topology = sample.topology
    count = topology.hosts_needed(sample.workers)
    path = write(topology.graph(count), topology.hosts(count), tmp_path / f"net.{ending}")
    kept = topology.model_dump(include={"routing", "duplex", "workers_per_host"})
    read, network = FromFile(path=str(path), **kept).network(sample.workers), sample.network
    assert read.hosts == network.hosts
    for other in range(1, sample.workers):
        for pair in ((0, other), (other, 0)):
            route, again = network.route(*pair), read.route(*pair)
            assert again.latency == route.latency
            assert [ends(link) for link in crossed(read, *pair)] == [ends(link) for link in crossed(network, *pair)]
            assert read.capacities[list(again.links)].tolist() == network.capacities[list(route.links)].tolist()


class Custom(Topology):
    """As users wrote them when there were workers only."""

    topology: str = "custom"
    hosts_given: tuple[str, ...] = ("left", "right")

    def graph(self, workers: int) -> nx.DiGraph[str]:
        graph: nx.DiGraph[str] = nx.DiGraph()
        graph.add_edge("left", "right", bandwidth=self.bandwidth, latency=self.latency)
        graph.add_edge("right", "left", bandwidth=self.bandwidth, latency=self.latency)
        return graph

    def hosts(self, workers: int) -> tuple[str, ...]:
        return tuple(self.hosts_given[worker % 2] for worker in range(workers))


def test_a_user_s_own_topology_says_where_workers_sit() -> None:
    network = Custom().network(4)
    assert network.hosts == ("left", "right", "left", "right")
    assert crossed(network, 0, 1) == ["left->right"]
    assert network.route(0, 2).links == ()
    assert network.islands == (0, 1, 0, 1)


def test_a_user_s_own_topology_must_give_the_hosts_asked_for() -> None:
    class Short(Custom):
        def hosts(self, workers: int) -> tuple[str, ...]:
            return ("left",)

    with pytest.raises(InputError, match=r"got 1 hosts from hosts\(3\) of topology 'custom'; expected 3"):
        Short().network(3)


def test_a_user_s_own_clusters_must_have_all_hosts() -> None:
    class Apart(Custom):
        def clusters(self, count: int) -> tuple[tuple[str, ...], ...]:
            return (("left",),)

    with pytest.raises(InputError, match=r"clusters\(2\) of topology 'custom' without the host 'right'"):
        Apart().network(2)

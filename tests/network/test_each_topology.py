"""Each topology by itself: closed forms from the literature, wiring, and the sizes that are refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import networkx as nx
import pytest
from pydantic import ValidationError

from simdist.errors import InputError
from simdist.network import (
    Dragonfly,
    FatTree,
    FullMesh,
    Line,
    RailOptimised,
    RandomGeometric,
    Ring,
    Star,
    Topology,
    Torus,
    Tree,
    TwoLevel,
    Wan,
    topologies,
)
from tests.network.catalogue import SAMPLES, crossed

# -- closed forms -----------------------------------------------------------------------------------------------------


@dataclass
class Form:
    """What the literature says: links (both directions as one), longest route in links, and bit/s between halves.

    ``first`` hosts are one half; those of an odd number of groups are as equal as whole groups can be.
    """

    topology: Topology
    hosts: int
    links: int
    diameter: int
    between_halves: float
    first: int | None = None


FORMS = {
    "star": Form(Star(bandwidth=1), 8, 8, 2, 4),
    "star, slow upload": Form(Star(bandwidth=1, upload=0.25), 8, 8, 2, 1),
    "full-mesh": Form(FullMesh(bandwidth=1), 7, 21, 1, 12),
    "ring": Form(Ring(bandwidth=1), 9, 9, 4, 2),
    "ring of one": Form(Ring(bandwidth=1), 1, 0, 0, 0),
    "line": Form(Line(bandwidth=1), 9, 8, 8, 1),
    "tree, plain": Form(Tree(bandwidth=1, arity=4), 16, 20, 4, 2),
    "tree, growing": Form(Tree(bandwidth=1, arity=4, growth=4), 64, 84, 6, 32),
    "fat-tree of 4 ports": Form(FatTree(bandwidth=1), 16, 48, 6, 8),
    "fat-tree of 6 ports": Form(FatTree(bandwidth=1, oversubscription=3), 54, 162, 6, 9),
    "torus in 1D": Form(Torus(bandwidth=1, dims=(8,)), 8, 8, 4, 2),
    "torus in 2D": Form(Torus(bandwidth=1), 16, 32, 4, 8),
    "torus in 3D": Form(Torus(bandwidth=1, dims=(4, 3, 2)), 24, 24 + 24 + 12, 4, 12),
    "hypercube": Form(Torus(bandwidth=1, dims=(2, 2, 2, 2)), 16, 32, 4, 8),
    "dragonfly": Form(Dragonfly(bandwidth=1), 72, 72 + 9 * 6 + 36, 5, 20, first=32),
    "dragonfly of 4 groups": Form(
        Dragonfly(bandwidth=1, local_bandwidth=9, global_bandwidth=3), 32, 32 + 4 * 6 + 6, 5, 12
    ),
    "rail-optimised": Form(RailOptimised(bandwidth=1, server_size=4), 16, 32, 4, 8),
    "two-level": Form(TwoLevel(bandwidth=1, island_size=4), 16, 20, 4, 2),
    "wan": Form(Wan(bandwidth=1, regions={"a": 2, "b": 2, "c": 2, "d": 2}), 8, 14, 3, 4),
}


def between_halves(form: Form) -> float:
    """The most that the first half of the hosts can send to the second, over all paths (maximum flow)."""
    graph, names = form.topology.graph(form.hosts), form.topology.hosts(form.hosts)
    half = form.hosts // 2 if form.first is None else form.first
    graph.add_nodes_from(["from", "to"])
    graph.add_edges_from(("from", name) for name in names[:half])
    graph.add_edges_from((name, "to") for name in names[half:])
    value: float = nx.maximum_flow_value(graph, "from", "to", capacity="bandwidth")
    return value


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_closed_forms(form: Form) -> None:
    network = form.topology.network(form.hosts)
    pairs = [(a, b) for a in range(form.hosts) for b in range(form.hosts)]
    assert form.topology.graph(form.hosts).number_of_edges() == 2 * form.links
    assert max(len(network.route(a, b).links) for a, b in pairs) == form.diameter
    assert between_halves(form) == form.between_halves


def test_latencies_between_two_hosts() -> None:
    """What the docstrings say, link by link."""
    assert Star(latency=1).network(3).route(0, 2).latency == 2
    assert FullMesh(latency=1).network(3).route(0, 2).latency == 1
    assert Ring(latency=1).network(10).route(1, 8).latency == 3
    assert Line(latency=1).network(10).route(1, 8).latency == 7
    assert [Tree(latency=1, arity=2).network(8).route(0, to).latency for to in (1, 2, 4)] == [2, 4, 6]
    assert [FatTree(latency=1).network(16).route(0, to).latency for to in (1, 2, 15)] == [2, 4, 6]
    assert Torus(latency=1, dims=(4, 5)).network(20).route(0, 3 * 5 + 3).latency == 1 + 2
    far = Dragonfly(latency=1, global_latency=10).network(72)
    assert max(far.route(0, to).latency for to in range(72)) == 4 + 10
    rails = RailOptimised(latency=1, server_latency=0.1, server_size=4).network(8)
    assert [rails.route(0, to).latency for to in (3, 4)] == [0.2, 2]
    assert rails.route(0, 5).latency == pytest.approx(2.2)
    islands = TwoLevel(latency=1, island_latency=0.25, island_size=2).network(4)
    assert [islands.route(0, to).latency for to in (1, 2)] == [0.5, 2.5]
    regions = Wan(latency=1, local_latency=0.25, regions={"a": 2, "b": 1}).network(3)
    assert [regions.route(0, to).latency for to in (1, 2)] == [0.5, 1.5]


# -- members ----------------------------------------------------------------------------------------------------------


def test_star_joins_every_host_to_the_switch_by_its_own_links() -> None:
    network = Star(bandwidth="100Mbit/s", latency="1ms").network(3)
    assert set(network.capacities.tolist()) == {1e8}
    assert len(network.links) == 6
    assert crossed(network, 0, 2) == ["host0->switch", "switch->host2"]


#: keys without a default
NEEDED: dict[str, dict[str, Any]] = {"file": {"path": "net.json"}, "wan": {"regions": {"a": 1}}}


@pytest.mark.parametrize("name", [name for name, kind in topologies.items() if kind.has_uplinks])
def test_upload_is_the_rate_towards_the_network(name: str) -> None:
    network = topologies.get(name).model_validate({"bandwidth": 8e6, "upload": 2e6, "latency": 0}).network(16)
    rates = [network.capacities[list(network.route(0, to).links)].min() for to in range(1, 16)]
    assert min(rates) == 2e6
    there = [network.capacities[list(network.route(host, 0).links)].min() for host in range(1, 16)]
    assert set(rates) == set(there)
    back = topologies.get(name).model_validate({"bandwidth": 2e6, "upload": 8e6, "latency": 0}).network(16)
    assert sorted(set(back.capacities.tolist()) & {2e6, 8e6}) == [2e6, 8e6]


@pytest.mark.parametrize("name", [name for name, kind in topologies.items() if not kind.has_uplinks])
def test_upload_is_refused_where_links_lead_to_no_network(name: str) -> None:
    with pytest.raises(ValidationError, match=f"upload with topology '{name}'.* upload: null"):
        topologies.get(name).model_validate({"upload": 1e6} | NEEDED.get(name, {}))


def test_two_level_shares_the_island_s_uplink() -> None:
    topology = TwoLevel(island_size=2, bandwidth=1e8, latency=1e-3, island_bandwidth=1e11, island_latency=1e-6)
    network = topology.network(4)
    assert crossed(network, 0, 1) == ["host0->island0", "island0->host1"]
    assert crossed(network, 1, 3) == ["host1->island0", "island0->core", "core->island1", "island1->host3"]
    assert network.capacities[list(network.route(1, 3).links)].tolist() == [1e11, 1e8, 1e8, 1e11]
    assert network.islands == (0, 0, 1, 1)


def test_rails_change_over_inside_a_server() -> None:
    network = RailOptimised(server_size=2).network(4)
    assert crossed(network, 0, 2) == ["server0/gpu0->rail0", "rail0->server1/gpu0"]
    assert [link.split("->")[1] for link in crossed(network, 0, 3)] == [
        "rail0",
        "server1/gpu0",
        "server1",
        "server1/gpu1",
    ]
    assert network.islands == (0, 0, 1, 1)


def test_a_core_switch_of_a_fat_tree_has_one_link_to_every_pod_by_the_same_aggregation_switch() -> None:
    graph = FatTree(ports=4).graph(16)
    for core in range(4):
        assert set(graph[f"core{core}"]) == {f"aggregation{pod}.{core // 2}" for pod in range(4)}


def test_every_pair_of_groups_of_a_dragonfly_has_one_link_and_routers_their_share() -> None:
    graph = Dragonfly(routers=4, hosts_per_router=2, global_links=2).graph(72)
    between = [(a.split(".")[0], b.split(".")[0]) for a, b in graph.edges if a[0] == b[0] == "r"]
    between = [(one, other) for one, other in between if one != other]
    assert len(set(between)) == len(between) == 9 * 8
    routers = [node for node in graph if node.startswith("router")]
    assert {graph.out_degree(router) for router in routers} == {2 + 3 + 2}


def test_wan_takes_matrices_and_goes_round_where_there_is_no_link() -> None:
    sample = SAMPLES["wan"]
    network = sample.network
    assert network.hosts == ("us/host0", "us/host1", "us/host2", "eu/host0", "eu/host1", "asia/host0")
    assert crossed(network, 0, 3)[1:-1] == ["us->eu"]
    assert crossed(network, 3, 5)[1:-1] == ["eu->us", "us->asia"]  # 0.045 + 0.08 s, where the link takes 0.2 s
    assert crossed(network, 5, 3)[1:-1] == ["asia->us", "us->eu"]  # there is no link from asia to eu
    assert network.islands == (0, 0, 0, 1, 1, 2)


def test_random_geometric_latencies_are_distances_and_seeds_draw_other_places() -> None:
    graph = RandomGeometric(latency=1, radius=2).graph(10)
    latencies = {(one, other): data["latency"] for one, other, data in graph.edges(data=True)}
    assert len(latencies) == 90
    assert all(0 < latency <= 2**0.5 for latency in latencies.values())
    for a, b, c in [("host0", "host1", "host2"), ("host3", "host7", "host9")]:
        assert latencies[a, c] <= latencies[a, b] + latencies[b, c]
    # drawn by a hash: the same on every machine
    assert latencies["host0", "host1"] == pytest.approx(0.3291745957997121, rel=1e-12)
    assert RandomGeometric(radius=2, layout_seed=1).graph(10).edges["host0", "host1"] != graph.edges["host0", "host1"]


def test_random_geometric_names_a_radius_that_joins() -> None:
    with pytest.raises(InputError, match=r"radius of 0\.05 .* or another network.layout_seed than 3") as caught:
        RandomGeometric(radius=0.05, layout_seed=3).graph(9)
    radius = float(str(caught.value).split("at least ")[1].split(",")[0])
    assert nx.is_strongly_connected(RandomGeometric(radius=radius, layout_seed=3).graph(9))
    with pytest.raises(InputError):
        RandomGeometric(radius=radius - 2e-4, layout_seed=3).graph(9)


@pytest.mark.parametrize(
    ("topology", "workers", "message"),
    [
        (TwoLevel(island_size=4), 6, r"island_size 4 for 6 hosts; .* such as 3"),
        (Torus(dims=(3, 3)), 8, r"dims: got \[3, 3\], 9 places for 8 hosts; .* such as \[4, 2\], or .*host_count=9"),
        (FatTree(ports=4), 17, r"ports: got 4, with room for 16 hosts, for 17 hosts; expected at least 6, or null"),
        (Dragonfly(groups=1), 9, r"groups: got 1 groups of 8 hosts for 9 hosts; expected from 2 to 9"),
        (Dragonfly(groups=10), 9, r"groups: got 10 groups"),
        (Dragonfly(), 73, r"got 73 hosts for a dragonfly of at most 9 groups .* at most 72 hosts"),
        (Wan(regions={"us": 2, "eu": 2}), 3, r"regions: got .* 4 hosts, for 3 hosts; .* network.host_count=4"),
    ],
    ids=lambda value: value.topology if isinstance(value, Topology) else "",
)
def test_sizes_that_do_not_fit_are_refused_with_those_that_do(topology: Topology, workers: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        topology.network(workers)


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        (Star, {"bandwidth": 0}, "bandwidth"),
        (Star, {"bandwidth": "100MB/s"}, "bandwidth"),
        (Star, {"latency": -1}, "latency"),
        (Star, {"latency": float("nan")}, "latency"),
        (Star, {"mode": "real"}, "mode"),
        (Star, {"routing": "random"}, "routing"),
        (Tree, {"arity": 1}, "at least 2 branches"),
        (Tree, {"growth": 0}, "growth"),
        (FatTree, {"ports": 5}, "even number of ports, such as 6"),
        (Torus, {"dims": [4, 0]}, "dims"),
        (Wan, {}, "regions"),
        (Wan, {"regions": {}}, "regions"),
        (Wan, {"regions": {"a": 1, "b": 1}, "bandwidths": [[None, 1]]}, "bandwidths with 1 rows of 2 for 2 regions"),
        (Wan, {"regions": {"a": 1, "b": 1}, "latencies": [[None, 1], [1, 0]]}, "latencies from 'b' to itself"),
        (
            Wan,
            {
                "regions": {"a": 1, "b": 1},
                "latencies": [[None, 1], [1, None]],
                "bandwidths": [[None, 1], [None, None]],
            },
            "only one of bandwidth and latency from 'b' to 'a'",
        ),
    ],
)
def test_impossible_settings_are_refused(kind: type[Topology], wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        kind.model_validate(wrong)


def test_regions_without_a_way_between_them_are_refused() -> None:
    one_way = {"regions": {"a": 1, "b": 1}, "bandwidths": [[None, 1], [None, None]]}
    with pytest.raises(InputError, match="host 'b/host0' cannot reach host 'a/host0'"):
        Wan.model_validate(one_way).network(2)


def test_all_servers_of_a_rail_optimised_network_are_alike() -> None:
    """Of two equal paths, by the sender's rail or by the receiver's, every server takes the sender's: the first too."""
    network = RailOptimised(server_size=3).network(12)
    for server in range(4):
        for other in {*range(4)} - {server}:
            path = crossed(network, 3 * server + 2, 3 * other)
            assert [link.partition("->")[2] for link in path] == [
                "rail2",
                f"server{other}/gpu2",
                f"server{other}",
                f"server{other}/gpu0",
            ]

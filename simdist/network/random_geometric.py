"""Random geometric topology."""

from __future__ import annotations

import hashlib
import math
from itertools import combinations

import networkx as nx

from simdist.errors import InputError
from simdist.network.topology import Topology, add_link, topologies
from simdist.settings import NaturalInt, PositiveFloat


@topologies.register("random-geometric")
class RandomGeometric(Topology):
    """Each host has links to all that are near: random places in a square, latency by distance; the others pass on.

    Gilbert, Random Plane Networks, 1961: hosts fall uniformly into the unit square, and two of them are joined if they
    are no farther than ``radius`` apart. A link of length d has d * ``latency``, so ``latency`` is that of the square's
    side, and every link has ``bandwidth``. n hosts are joined, most likely, from a radius of sqrt(ln n / (pi n)) on
    (Penrose, Random Geometric Graphs, 2003); where they are not, the network is refused.

    Attributes:
        radius: longest link, in sides of the square.
        layout_seed: draws other places. The first hosts keep theirs when others are added.
    """

    topology: str = "random-geometric"
    radius: PositiveFloat = 0.5
    layout_seed: NaturalInt = 0

    def graph(self, hosts: int) -> nx.DiGraph[str]:
        names = self.hosts(hosts)
        places = [(self._draw(f"x of {name}"), self._draw(f"y of {name}")) for name in names]
        distances = {(a, b): math.dist(places[a], places[b]) for a, b in combinations(range(hosts), 2)}
        graph: nx.DiGraph[str] = nx.DiGraph()
        graph.add_nodes_from(names)
        for (a, b), distance in distances.items():
            if distance <= self.radius:
                add_link(graph, names[a], names[b], self.bandwidth, distance * self.latency)
        if not nx.is_strongly_connected(graph):
            raise InputError(
                f"got a disconnected network: a network.radius of {self.radius} does not join {hosts} hosts; expected "
                f"at least {_joining(distances):.4g}, or another network.layout_seed than {self.layout_seed}"
            )
        return graph

    def _draw(self, what: str) -> float:
        """Return a number in [0, 1) that is the same on every machine and with every version of every library."""
        digest = hashlib.blake2b(f"{self.layout_seed} {what}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64


def _joining(distances: dict[tuple[int, int], float]) -> float:
    """Return the least radius that joins all hosts, rounded up: the longest link of the shortest spanning tree."""
    complete: nx.Graph[int] = nx.Graph()
    complete.add_weighted_edges_from((a, b, distance) for (a, b), distance in distances.items())
    longest: float = max(data["weight"] for _, _, data in nx.minimum_spanning_edges(complete))
    return math.ceil(longest * 1e4) / 1e4

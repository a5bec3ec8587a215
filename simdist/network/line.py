"""Line topology."""

from __future__ import annotations

from itertools import pairwise

import networkx as nx

from simdist.network.topology import Topology, add_link, topologies


@topologies.register("line")
class Line(Topology):
    """Each host has a link to the next one; hosts in between pass messages on.

    Hosts i and j > i are j - i links, and as many ``latency``, apart. One link joins one half to the other: a ring with
    its last link cut (Leighton, Introduction to Parallel Algorithms and Architectures, 1992: the linear array).
    """

    topology: str = "line"

    def graph(self, hosts: int) -> nx.DiGraph[str]:
        graph: nx.DiGraph[str] = nx.DiGraph()
        graph.add_nodes_from(self.hosts(hosts))
        for one, other in pairwise(self.hosts(hosts)):
            add_link(graph, one, other, self.bandwidth, self.latency)
        return graph

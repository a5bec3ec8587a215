"""Full-mesh topology."""

from __future__ import annotations

from itertools import combinations

import networkx as nx

from simdist.network.topology import Topology, add_link, topologies


@topologies.register("full-mesh")
class FullMesh(Topology):
    """Each pair of hosts has a link of its own.

    A message crosses one link: it takes ``latency`` + bytes * 8 / ``bandwidth``, whatever other pairs do; n hosts have
    n (n - 1) / 2 links, of which floor(n / 2) * ceil(n / 2) join one half to the other (Dally & Towles, Principles and
    Practices of Interconnection Networks, 2004: the fully connected network).
    """

    topology: str = "full-mesh"

    def graph(self, hosts: int) -> nx.DiGraph[str]:
        graph: nx.DiGraph[str] = nx.DiGraph()
        graph.add_nodes_from(self.hosts(hosts))
        for one, other in combinations(self.hosts(hosts), 2):
            add_link(graph, one, other, self.bandwidth, self.latency)
        return graph

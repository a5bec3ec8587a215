"""Ring topology."""

from __future__ import annotations

from itertools import pairwise

import networkx as nx

from simdist.network.topology import Topology, add_link, topologies


@topologies.register("ring")
class Ring(Topology):
    """Each host has a link to the next one, the last to the first; hosts in between pass messages on.

    Hosts i and j > i of n are d = min(j - i, n - j + i) links, and d ``latency``, apart. Two links join one half to the
    other (Dally & Towles, Principles and Practices of Interconnection Networks, 2004: the n-ary 1-cube). Two hosts have
    one link, not two.
    """

    topology: str = "ring"

    def graph(self, hosts: int) -> nx.DiGraph[str]:
        graph: nx.DiGraph[str] = nx.DiGraph()
        names = self.hosts(hosts)
        graph.add_nodes_from(names)
        for one, other in pairwise([*names, names[0]] if hosts > 2 else names):
            add_link(graph, one, other, self.bandwidth, self.latency)
        return graph

"""Star topology."""

from __future__ import annotations

import networkx as nx

from simdist.network.topology import Topology, topologies


@topologies.register("star")
class Star(Topology):
    """Each host has its own up- and downlink to one switch that is never the bottleneck.

    A message crosses two links: it takes 2 ``latency`` + bytes * 8 / ``bandwidth`` if nobody shares them. Cut in
    halves, n hosts exchange ``bandwidth`` * n / 2 each way. This is the platform of the hose model (Duffield et al.,
    SIGCOMM 1999): only the hosts' own links limit them.
    """

    has_uplinks = True
    topology: str = "star"

    def graph(self, hosts: int) -> nx.DiGraph[str]:
        graph: nx.DiGraph[str] = nx.DiGraph()
        for host in self.hosts(hosts):
            self.join_host(graph, host, "switch")
        return graph

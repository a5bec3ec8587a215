"""Star topology."""

from __future__ import annotations

import networkx as nx

from simdist.network.topology import Topology, add_link, topologies


@topologies.register("star")
class Star(Topology):
    """Each worker has its own up- and downlink to one switch that is never the bottleneck.

    A message crosses two links: it takes 2 ``latency`` + bytes * 8 / ``bandwidth`` if nobody shares them.
    """

    topology: str = "star"

    def graph(self, workers: int) -> nx.DiGraph[str]:
        graph: nx.DiGraph[str] = nx.DiGraph()
        for host in self.hosts(workers):
            add_link(graph, host, "switch", self.bandwidth, self.latency)
        return graph

    def hosts(self, workers: int) -> tuple[str, ...]:
        return tuple(f"worker{worker}" for worker in range(workers))

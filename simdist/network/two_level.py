"""Two-level topology: fast islands, slow links between them."""

from __future__ import annotations

import networkx as nx

from simdist.errors import InputError
from simdist.network.topology import Topology, add_link, topologies
from simdist.settings import PositiveInt
from simdist.units import Rate, Seconds


@topologies.register("two-level")
class TwoLevel(Topology):
    """Fast islands of workers joined by slow links (``bandwidth``) that each island shares.

    Island i holds workers i * ``island_size`` to (i+1) * ``island_size`` - 1. Each has its own up- and downlink of
    ``island_bandwidth`` and ``island_latency`` to its island's switch; each island's switch has one up- and one
    downlink of ``bandwidth`` and ``latency`` to the core. A path across islands takes
    2 ``island_latency`` + 2 ``latency``.
    """

    topology: str = "two-level"
    island_size: PositiveInt = 4
    island_bandwidth: Rate = 100e9
    island_latency: Seconds = 5e-6

    def graph(self, workers: int) -> nx.DiGraph[str]:
        if workers % self.island_size:
            raise InputError(
                f"got network.island_size {self.island_size} for {workers} workers; expected a size that divides "
                f"the workers, such as {self._nearest_size(workers)}"
            )
        graph: nx.DiGraph[str] = nx.DiGraph()
        for worker, host in enumerate(self.hosts(workers)):
            island = f"island{worker // self.island_size}"
            add_link(graph, host, island, self.island_bandwidth, self.island_latency)
        for island_index in range(workers // self.island_size):
            add_link(graph, f"island{island_index}", "core", self.bandwidth, self.latency)
        return graph

    def hosts(self, workers: int) -> tuple[str, ...]:
        return tuple(f"worker{worker}" for worker in range(workers))

    def _nearest_size(self, workers: int) -> int:
        sizes = [size for size in range(1, workers + 1) if workers % size == 0]
        return min(sizes, key=lambda size: abs(size - self.island_size))

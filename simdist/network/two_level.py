"""Two-level topology: fast islands, slow links between them."""

from __future__ import annotations

import networkx as nx

from simdist.errors import InputError
from simdist.network.topology import Topology, add_link, runs, topologies
from simdist.settings import PositiveInt
from simdist.units import Rate, Seconds


@topologies.register("two-level")
class TwoLevel(Topology):
    """Fast islands of hosts joined by slow up- and downlinks (``bandwidth``) that each island shares.

    Island i holds hosts i * ``island_size`` to (i+1) * ``island_size`` - 1. Each has its own up- and downlink of
    ``island_bandwidth`` and ``island_latency`` to its island's switch; each island's switch has one up- and one
    downlink of ``bandwidth`` and ``latency`` to the core. Hosts are 2 ``island_latency`` apart within an island, and
    2 ``island_latency`` + 2 ``latency`` across. Two halves of I islands exchange ``bandwidth`` * I / 2 (or what their
    hosts can send, if that is less).
    """

    has_uplinks = True
    topology: str = "two-level"
    island_size: PositiveInt = 4
    island_bandwidth: Rate = 100e9
    island_latency: Seconds = 5e-6

    def graph(self, hosts: int) -> nx.DiGraph[str]:
        graph: nx.DiGraph[str] = nx.DiGraph()
        for index, island in enumerate(self.clusters(hosts)):
            for host in island:
                add_link(graph, host, f"island{index}", self.island_bandwidth, self.island_latency)
        for index in range(hosts // self.island_size):
            self.join_host(graph, f"island{index}", "core")
        return graph

    def clusters(self, count: int) -> tuple[tuple[str, ...], ...]:
        if count % self.island_size:
            sizes = [size for size in range(1, count + 1) if count % size == 0]
            raise InputError(
                f"got network.island_size {self.island_size} for {count} hosts; expected a size that divides the "
                f"hosts, such as {min(sizes, key=lambda size: abs(size - self.island_size))}"
            )
        hosts = self.hosts(count)
        return runs(hosts, self.island_size)

"""Rail-optimised topology of servers with several accelerators."""

from __future__ import annotations

import networkx as nx

from simdist.network.topology import Topology, add_link, runs, topologies
from simdist.settings import PositiveInt
from simdist.units import Rate, Seconds


@topologies.register("rail-optimised")
class RailOptimised(Topology):
    """Each GPU has its own up- and downlink to the switch of its rail, and a fast one to its server's own switch.

    Here a host of the placement is one GPU with its network card. Server s holds GPUs s * ``server_size`` to
    (s + 1) * ``server_size`` - 1, joined by NVSwitch; GPU g of every server is joined to rail switch g. There is no
    spine above the rails: messages to another rail change over inside a server (NCCL's PXN), as in the rail-only
    network of Wang et al., Hot Interconnects 2024. GPUs are 2 ``server_latency`` apart within a server, 2 ``latency``
    on one rail, and both together otherwise. Two halves of S servers exchange ``bandwidth`` * ``server_size`` * S / 2.
    The last server may have empty places.

    Attributes:
        server_size: GPUs, and so rails.
        server_bandwidth: of a GPU's link to its server's switch, each direction (NVLink 4: 450 GB/s).
        server_latency: of such a link.
    """

    has_uplinks = True
    topology: str = "rail-optimised"
    server_size: PositiveInt = 8
    server_bandwidth: Rate = 3.6e12
    server_latency: Seconds = 1e-6

    def graph(self, hosts: int) -> nx.DiGraph[str]:
        graph: nx.DiGraph[str] = nx.DiGraph()
        # before the servers: of two equal paths the one over the sender's own rail comes first, on the first server too
        graph.add_nodes_from(f"rail{rail}" for rail in range(min(hosts, self.server_size)))
        for index, gpu in enumerate(self.hosts(hosts)):
            server, rail = divmod(index, self.server_size)
            self.join_host(graph, gpu, f"rail{rail}")
            add_link(graph, gpu, f"server{server}", self.server_bandwidth, self.server_latency)
        return graph

    def hosts(self, count: int) -> tuple[str, ...]:
        return tuple(f"server{index // self.server_size}/gpu{index % self.server_size}" for index in range(count))

    def clusters(self, count: int) -> tuple[tuple[str, ...], ...]:
        return runs(self.hosts(count), self.server_size)

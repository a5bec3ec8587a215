"""Fat-tree topology of k-port switches."""

from __future__ import annotations

import networkx as nx
from pydantic import field_validator

from simdist.errors import InputError
from simdist.network.routing import RoutingPolicy
from simdist.network.topology import Topology, add_link, runs, topologies
from simdist.settings import PositiveFloat, PositiveInt


@topologies.register("fat-tree")
class FatTree(Topology):
    """Each host has its own up- and downlink to three levels of equal switches with many paths between pods.

    Al-Fares, Loukissas & Vahdat, SIGCOMM 2008: k-port switches make k pods of k/2 edge and k/2 aggregation switches,
    under (k/2)² core switches, with room for k³/4 hosts, filled in order; other places stay empty. Aggregation switch a
    of every pod is joined to core switches a k/2 to (a + 1) k/2 - 1. A path takes 2 ``latency`` below one edge switch,
    4 within a pod, where there are k/2 of them, and 6 between pods, where there are (k/2)². Two halves of the pods
    exchange ``bandwidth`` * k³/8 / ``oversubscription``: full bisection, if the paths are used evenly. ECMP spreads
    pairs by chance, so that some meet on a link all the same; ``routing=shortest`` sends all over the first switches.

    Attributes:
        ports: k, even; null: the least that has room for all hosts.
        oversubscription: how many times less bandwidth the links between switches have than those of the hosts.
    """

    has_uplinks = True
    topology: str = "fat-tree"
    routing: RoutingPolicy = "ecmp"
    ports: PositiveInt | None = None
    oversubscription: PositiveFloat = 1.0

    @field_validator("ports")
    @classmethod
    def _even(cls, value: int | None) -> int | None:
        if value is not None and value % 2:
            raise ValueError(f"got {value}; expected an even number of ports, such as {value + 1}")
        return value

    def graph(self, hosts: int) -> nx.DiGraph[str]:
        half = self._ports(hosts) // 2
        rate = self.bandwidth / self.oversubscription
        graph: nx.DiGraph[str] = nx.DiGraph()
        for index, host in enumerate(self.hosts(hosts)):
            pod, edge = divmod(index // half, half)
            self.join_host(graph, host, f"edge{pod}.{edge}")
        for pod in range(2 * half):
            for aggregation in range(half):
                for other in range(half):
                    add_link(graph, f"edge{pod}.{other}", f"aggregation{pod}.{aggregation}", rate, self.latency)
                    core = f"core{aggregation * half + other}"
                    add_link(graph, f"aggregation{pod}.{aggregation}", core, rate, self.latency)
        return graph

    def clusters(self, count: int) -> tuple[tuple[str, ...], ...]:
        return runs(self.hosts(count), (self._ports(count) // 2) ** 2)

    def _ports(self, hosts: int) -> int:
        least = next(ports for ports in range(2, 2 * hosts + 2, 2) if ports**3 // 4 >= hosts)
        if self.ports is not None and self.ports < least:
            raise InputError(
                f"network.ports: got {self.ports}, with room for {self.ports**3 // 4} hosts, for {hosts} hosts; "
                f"expected at least {least}, or null"
            )
        return self.ports or least

"""Dragonfly topology."""

from __future__ import annotations

from itertools import combinations

import networkx as nx

from simdist.errors import InputError
from simdist.network.topology import Topology, add_link, runs, topologies
from simdist.settings import PositiveInt
from simdist.units import Rate, Seconds


@topologies.register("dragonfly")
class Dragonfly(Topology):
    """Each host has its own up- and downlink to a router of a group, and each pair of groups has one link.

    Kim, Dally, Scott & Abts, ISCA 2008: a group has a = ``routers`` routers, all joined to each other, with p =
    ``hosts_per_router`` hosts and h = ``global_links`` links to other groups each; a = 2 p = 2 h balances the load, and
    at most a h + 1 groups fit. Hosts fill router after router; the last group is whole, even if it is not full of
    hosts. Channel c of group i leads to group (i + c + 1) mod g from router c // h (the relative arrangement of
    Hastings et al., Cluster 2015); with fewer than a h + 1 groups the last channels are not used. A shortest path
    takes at most one local, one global and one local link between the hosts' own: 4 ``latency`` +
    ``global_latency``, where no detour over a third group is shorter. Two halves of g groups exchange
    ``global_bandwidth`` * floor(g/2) * ceil(g/2).

    Attributes:
        routers: per group.
        hosts_per_router: room of each router.
        global_links: to other groups, per router.
        groups: how many there are; null: as many as the hosts need.
        local_bandwidth: of links within a group; null: ``bandwidth``. They have ``latency`` too.
        global_bandwidth: of links between groups; null: ``bandwidth``.
        global_latency: of links between groups; null: ``latency``.
    """

    has_uplinks = True
    topology: str = "dragonfly"
    routers: PositiveInt = 4
    hosts_per_router: PositiveInt = 2
    global_links: PositiveInt = 2
    groups: PositiveInt | None = None
    local_bandwidth: Rate | None = None
    global_bandwidth: Rate | None = None
    global_latency: Seconds | None = None

    def graph(self, hosts: int) -> nx.DiGraph[str]:
        groups = self._groups(hosts)
        graph: nx.DiGraph[str] = nx.DiGraph()
        for index, host in enumerate(self.hosts(hosts)):
            group, router = divmod(index // self.hosts_per_router, self.routers)
            self.join_host(graph, host, f"router{group}.{router}")
        for group in range(groups):
            routers = [f"router{group}.{router}" for router in range(self.routers)]
            graph.add_nodes_from(routers)
            for one, other in combinations(routers, 2):
                add_link(graph, one, other, self.local_bandwidth or self.bandwidth, self.latency)
        rate = self.global_bandwidth or self.bandwidth
        latency = self.latency if self.global_latency is None else self.global_latency
        for here, there in combinations(range(groups), 2):
            add_link(graph, self._exit(here, there, groups), self._exit(there, here, groups), rate, latency)
        return graph

    def clusters(self, count: int) -> tuple[tuple[str, ...], ...]:
        return runs(self.hosts(count), self.routers * self.hosts_per_router)

    def _exit(self, group: int, to: int, groups: int) -> str:
        """Return the router of a group that has the link to another group."""
        channel = (to - group - 1) % groups
        return f"router{group}.{channel // self.global_links}"

    def _groups(self, hosts: int) -> int:
        room = self.routers * self.hosts_per_router
        needed, most = -(-hosts // room), self.routers * self.global_links + 1
        groups = self.groups or needed
        if needed > most:
            raise InputError(
                f"got {hosts} hosts for a dragonfly of at most {most} groups (routers * global_links + 1) of {room} "
                f"hosts (routers * hosts_per_router); expected at most {most * room} hosts, or larger numbers than "
                f"network.routers={self.routers}, network.global_links={self.global_links} and "
                f"network.hosts_per_router={self.hosts_per_router}"
            )
        if not needed <= groups <= most:
            raise InputError(
                f"network.groups: got {groups} groups of {room} hosts for {hosts} hosts; expected from {needed} to "
                f"{most}, which is routers * global_links + 1"
            )
        return groups

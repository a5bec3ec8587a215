"""The network between workers: links with capacities, and one fixed route for every pair of workers."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import networkx as nx
import numpy as np

from simdist.errors import InputError, suggest
from simdist.network.flows import Route, Sharing

_HERE = Route((), 0.0)


class Network:
    """Routes and links of a graph, seen from the workers.

    A route is the path with the least latency, then the fewest hops, then the nodes that come first in the graph.
    Two workers on one host reach each other at once, over no link.

    Attributes:
        links: (from, to) node names of each directed link.
        capacities: bit/s of each link.
        sharing: max-min fair rates on these links.
        hosts: the host of each worker.

    Raises:
        InputError: when a worker's host is not in the graph, or one host cannot reach another.
    """

    def __init__(self, graph: nx.DiGraph[str], hosts: Sequence[str]) -> None:
        self.hosts = tuple(hosts)
        self.links: tuple[tuple[str, str], ...] = tuple(graph.edges())
        self.capacities = np.array([graph.edges[link]["bandwidth"] for link in self.links], dtype=np.float64)
        self.sharing = Sharing(self.capacities)
        _check_reachable(graph, self.hosts)
        self._order = {node: place for place, node in enumerate(graph.nodes())}
        # Per node: (neighbour, link, latency) of each link that leaves it.
        self._leaving: dict[str, list[tuple[str, int, float]]] = {node: [] for node in graph.nodes()}
        for index, (source, target) in enumerate(self.links):
            self._leaving[source].append((target, index, float(graph.edges[source, target]["latency"])))
        self._routes: dict[tuple[str, str], Route] = {}

    @property
    def workers(self) -> int:
        return len(self.hosts)

    def route(self, source: int, target: int) -> Route:
        """Return the links and the latency (s) from one worker to another."""
        pair = self.hosts[source], self.hosts[target]
        found = self._routes.get(pair)
        if found is None:
            found = self._routes[pair] = _HERE if pair[0] == pair[1] else self._shortest(*pair)
        return found

    def _shortest(self, start: str, goal: str) -> Route:
        """Dijkstra on (latency, hops, nodes in graph order); the last makes ties deterministic."""
        heap: list[tuple[float, int, tuple[int, ...], str, tuple[int, ...]]] = [
            (0.0, 0, (self._order[start],), start, ())
        ]
        done: set[str] = set()
        while heap:
            latency, hops, path, node, links = heapq.heappop(heap)
            if node == goal:
                return Route(links, latency)
            if node in done:
                continue
            done.add(node)
            for neighbour, link, more in self._leaving[node]:
                onward = self._leaving[neighbour]
                # Other hosts of a switch are dead ends: not following them keeps big stars cheap.
                dead_end = all(back[0] == node for back in onward[:2]) and neighbour != goal
                if neighbour not in done and not dead_end:
                    step = (latency + more, hops + 1, (*path, self._order[neighbour]), neighbour, (*links, link))
                    heapq.heappush(heap, step)
        raise AssertionError("hosts were checked to reach each other")


def _check_reachable(graph: nx.DiGraph[str], hosts: tuple[str, ...]) -> None:
    for worker, host in enumerate(hosts):
        if host not in graph:
            raise InputError(
                f"got a network without the host {host!r} of worker {worker}; expected a node for every worker."
                f"{suggest(host, [str(node) for node in graph.nodes()])}"
            )
    first = hosts[0]
    reached = {first, *nx.descendants(graph, first)}
    reaching = {first, *nx.ancestors(graph, first)}
    for worker, host in enumerate(hosts):
        if host not in reached or host not in reaching:
            one, other = (first, host) if host not in reached else (host, first)
            raise InputError(
                f"got a disconnected network: host {one!r} cannot reach host {other!r} (worker {worker}); "
                "expected a path of links from every worker's host to every other"
            )

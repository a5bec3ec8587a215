"""Routes: the path that messages take between two nodes of a network.

A path costs its latency, then its hops. Among paths of equal cost, ``shortest`` takes the one whose nodes come first in
the graph; ``ecmp`` (equal-cost multi-path, RFC 2992) spreads pairs of hosts over them by a hash, each pair keeping to
one path, as switches do for each flow.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    import networkx as nx

RoutingPolicy: TypeAlias = Literal["shortest", "ecmp"]

#: Costs are whole numbers, so that sums in another order still tie: a path's latency in femtoseconds, then its hops.
_FEMTOSECONDS = 1e15
_HOP_BITS = 20

#: Neighbour and cost of a link out of a node, or into it.
_Step: TypeAlias = "tuple[int, int]"


class _Destination:
    """The cheapest paths from everywhere to one node, found no farther than somebody has asked (Dijkstra)."""

    def __init__(self, node: int, entering: list[list[_Step]], leaving: list[list[_Step]]) -> None:
        self._node = node
        self._entering = entering
        self._leaving = leaving
        self._cost = {node: 0}
        self._ahead = [(0, node)]
        self._ways = {node: 1}

    def look_from(self, node: int) -> None:
        """Find the cost of a node, and so of all nodes on its cheapest paths."""
        # Whoever costs no more than the head of the queue has its final cost: nothing cheaper can come.
        while self._ahead and self._cost.get(node, math.inf) > self._ahead[0][0]:
            cost, near = heapq.heappop(self._ahead)
            if cost == self._cost[near]:
                for far, more in self._entering[near]:
                    if cost + more < self._cost.get(far, math.inf):
                        self._cost[far] = cost + more
                        heapq.heappush(self._ahead, (cost + more, far))

    def path(self, node: int, number: int) -> list[int]:
        """Return the nodes of one of the :meth:`ways`, counted from 0 in the order of their nodes in the graph."""
        path = [node]
        while path[-1] != self._node:
            for near in self._onward(path[-1]):
                # the first of all needs no counting of the others
                if number == 0 or number < self.ways(near):
                    path.append(near)
                    break
                number -= self.ways(near)
        return path

    def _onward(self, node: int) -> list[int]:
        """Return the next nodes on the cheapest paths from a node that was looked from, in graph order."""
        left = self._cost[node]
        return [near for near, cost in self._leaving[node] if self._cost.get(near) == left - cost]

    def ways(self, node: int) -> int:
        """Count the cheapest paths from a node that was looked from."""
        stack = [node]
        while stack:
            here = stack[-1]
            onward = [] if here in self._ways else self._onward(here)
            uncounted = [near for near in onward if near not in self._ways]
            stack.extend(uncounted)
            if not uncounted:
                stack.pop()
                if onward:
                    self._ways[here] = sum(self._ways[near] for near in onward)
        return self._ways[node]


class Routes:
    """Finds routes in a graph and remembers what it learnt on the way.

    Args:
        graph: directed links with ``latency`` (s); it is read once, here.
        links: the index of each directed link's capacity; two directions may share one.
        policy: ``shortest`` or ``ecmp``.
        seed: draws another assignment of pairs to paths under ``ecmp``.
    """

    def __init__(
        self,
        graph: nx.DiGraph[str],
        links: Mapping[tuple[str, str], int],
        policy: RoutingPolicy = "shortest",
        seed: int = 0,
    ) -> None:
        self._links = links
        self._policy = policy
        self._seed = seed
        self._names = list(graph.nodes())
        self._order = {name: place for place, name in enumerate(self._names)}
        self._latency: dict[tuple[str, str], float] = {}
        self._leaving: list[list[_Step]] = [[] for _ in self._names]
        self._entering: list[list[_Step]] = [[] for _ in self._names]
        for source, target, data in graph.edges(data=True):
            latency = self._latency[source, target] = float(data["latency"])
            here, there = self._order[source], self._order[target]
            cost = (round(latency * _FEMTOSECONDS) << _HOP_BITS) + 1
            self._leaving[here].append((there, cost))
            self._entering[there].append((here, cost))
        for steps in self._leaving:
            steps.sort()
        self._gateway = self._gateways()
        # nobody passes through a node that has one neighbour
        self._entering = [[step for step in steps if step[0] not in self._gateway] for steps in self._entering]
        self._destinations: dict[int, _Destination] = {}

    def route(self, source: str, target: str) -> tuple[tuple[int, ...], float]:
        """Return the links from one node to another and the sum of their latencies (s, correctly rounded).

        There must be a path: :class:`simdist.network.network.Network` checks that all hosts reach each other.
        """
        path = self.path(source, target)
        hops = list(pairwise(path))
        return tuple(self._links[hop] for hop in hops), math.fsum(self._latency[hop] for hop in hops)

    def path(self, source: str, target: str) -> tuple[str, ...]:
        """Return the nodes from one node to another, both included."""
        start, goal = self._order[source], self._order[target]
        if start == goal:
            return (source,)
        # A host on one switch has no choice but that switch: routes are found between switches only.
        first, last = self._gateway.get(start, start), self._gateway.get(goal, goal)
        middle = self._between(first, last, f"{self._seed} {source} {target}")
        whole = [start] * (first != start) + middle + [goal] * (last != goal)
        return tuple(self._names[node] for node in whole)

    def access(self, node: str) -> tuple[str, int, int, float, float] | None:
        """Return a node's only neighbour, the links to it and back, and their latencies (s); None where it has several.

        Under ``shortest`` the way between two such nodes is that between their neighbours, whoever they are.
        """
        gate = self._gateway.get(self._order[node])
        if gate is None:
            return None
        name = self._names[gate]
        there, back = (node, name), (name, node)
        return name, self._links[there], self._links[back], self._latency[there], self._latency[back]

    def _gateways(self) -> dict[int, int]:
        """Return the neighbour of every node that has just one, unless that one has no other neighbour either."""
        alone = {
            node: leaving[0][0]
            for node, (leaving, entering) in enumerate(zip(self._leaving, self._entering, strict=True))
            if len(leaving) == len(entering) == 1 and leaving[0][0] == entering[0][0]
        }
        return {node: neighbour for node, neighbour in alone.items() if neighbour not in alone}

    def _between(self, first: int, last: int, pair: str) -> list[int]:
        destination = self._destinations.get(last)
        if destination is None:
            destination = self._destinations[last] = _Destination(last, self._entering, self._leaving)
        destination.look_from(first)
        number = _draw(pair, destination.ways(first)) if self._policy == "ecmp" else 0
        return destination.path(first, number)


def _draw(text: str, ways: int) -> int:
    """Return a number below ``ways``: the same for the same text on every machine, spread evenly over texts."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "big") % ways

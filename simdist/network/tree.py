"""Tree topology."""

from __future__ import annotations

from typing import Annotated

import networkx as nx
from pydantic import AfterValidator

from simdist.network.topology import Topology, runs, topologies
from simdist.settings import PositiveFloat, PositiveInt


def _branches(value: int) -> int:
    if value < 2:
        raise ValueError(f"got {value!r}; expected at least 2 branches")
    return value


@topologies.register("tree")
class Tree(Topology):
    """Each host has its own up- and downlink to a switch, and each switch to the one above, up to a root.

    Host i is leaf i of a tree with ``arity`` ** depth leaves, the least that hold all hosts; branches without a host
    do not exist. A switch l steps above the hosts has ``growth`` ** l times their bandwidth towards the root: 1 is a
    plain tree, ``arity`` one whose links grow with the hosts below (the fat-tree of Leiserson, IEEE Trans. Computers,
    1985). Hosts whose paths meet at level l are 2 l links, and as many ``latency``, apart. Two halves of arity **
    depth hosts exchange ``bandwidth`` * ``growth`` ** (depth - 1) * ``arity`` / 2, for an even ``arity``.

    Attributes:
        arity: branches of each switch, at least 2.
        growth: bandwidth of a link towards the root, relative to the link below it.
    """

    has_uplinks = True
    topology: str = "tree"
    arity: Annotated[PositiveInt, AfterValidator(_branches)] = 4
    growth: PositiveFloat = 1.0

    def graph(self, hosts: int) -> nx.DiGraph[str]:
        graph: nx.DiGraph[str] = nx.DiGraph()
        below, level, widening = self.hosts(hosts), 0, 1.0
        while len(below) > 1 or level == 0:
            level += 1
            above = tuple(f"switch{level}.{index}" for index in range(-(-len(below) // self.arity)))
            for index, node in enumerate(below):
                self.join_host(graph, node, above[index // self.arity], widening)
            below, widening = above, widening * self.growth
        return graph

    def clusters(self, count: int) -> tuple[tuple[str, ...], ...]:
        return runs(self.hosts(count), self.arity)

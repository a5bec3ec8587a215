"""Torus topology."""

from __future__ import annotations

import math
from itertools import product

import networkx as nx

from simdist.errors import InputError
from simdist.network.topology import Topology, add_link, topologies
from simdist.settings import PositiveInt


@topologies.register("torus")
class Torus(Topology):
    """Each host has a link to the next one along each dimension of a grid whose ends are joined.

    Host i sits at the mixed-radix digits of i, the last dimension running fastest. Hosts are sum over the dimensions of
    min(d, k - d) links, and as many ``latency``, apart, where d is their distance along a dimension of size k. Along
    the largest dimension, if it is even, 2 n / k links join one half of the n hosts to the other (n / 2 where k = 2:
    two hosts have one link, not two). Dally & Towles, Principles and Practices of Interconnection Networks, 2004,
    chapter 5; TPU pods are 2D and 3D tori (Jouppi et al., ISCA 2023).

    Attributes:
        dims: sizes of the dimensions, which multiply to the number of hosts; null: the two nearest to a square.
    """

    topology: str = "torus"
    dims: tuple[PositiveInt, ...] | None = None

    def graph(self, hosts: int) -> nx.DiGraph[str]:
        dims = self._dims(hosts)
        places = list(product(*(range(size) for size in dims)))
        host_at = dict(zip(places, self.hosts(hosts), strict=True))
        graph: nx.DiGraph[str] = nx.DiGraph()
        graph.add_nodes_from(host_at.values())
        for place in places:
            for axis, size in enumerate(dims):
                following = (*place[:axis], (place[axis] + 1) % size, *place[axis + 1 :])
                if following != place:
                    add_link(graph, host_at[place], host_at[following], self.bandwidth, self.latency)
        return graph

    def _dims(self, hosts: int) -> tuple[int, ...]:
        square = max(size for size in range(1, math.isqrt(hosts) + 1) if hosts % size == 0)
        dims = self.dims or (hosts // square, square)
        if math.prod(dims) != hosts:
            raise InputError(
                f"network.dims: got {list(dims)}, {math.prod(dims)} places for {hosts} hosts; expected sizes that "
                f"multiply to {hosts}, such as [{hosts // square}, {square}], or network.host_count={math.prod(dims)}"
            )
        return dims

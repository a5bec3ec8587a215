"""Base class of the networks a scenario can name: hosts, switches and the links between them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Literal

from simdist.network.network import Network
from simdist.registry import Registry
from simdist.settings import Settings
from simdist.units import Rate, Seconds

if TYPE_CHECKING:
    import networkx as nx


class Topology(Settings, ABC):
    """A network as a scenario describes it.

    Attributes:
        topology: name in the registry.
        bandwidth: rate in bit/s of the links that the topology's first line speaks of, each direction.
        latency: seconds from one end of such a link to the other.
        collectives: plan that carries out collectives (``ring``, ``direct``).
        mode: ``simulated`` never waits; ``paced`` holds transfers back so that wall time follows simulated time.
    """

    topology: str
    bandwidth: Rate = 1e9
    latency: Seconds = 50e-6
    collectives: str = "ring"
    mode: Literal["simulated", "paced"] = "simulated"

    @abstractmethod
    def graph(self, workers: int) -> nx.DiGraph[str]:
        """Return hosts and switches as nodes and directed links as edges with ``bandwidth`` (bit/s), ``latency`` (s).

        Raises:
            InputError: when the topology does not fit so many workers.
        """

    @abstractmethod
    def hosts(self, workers: int) -> tuple[str, ...]:
        """Return the host of each worker; several workers may share one."""

    def network(self, workers: int) -> Network:
        """Return the routes and links between so many workers.

        Raises:
            InputError: when a worker's host is missing or cannot be reached, or the topology does not fit.
        """
        return Network(self.graph(workers), self.hosts(workers))


topologies: Registry[type[Topology]] = Registry("topology")


def add_link(graph: nx.DiGraph[str], one: str, other: str, bandwidth: float, latency: float) -> None:
    """Join two nodes by one link in each direction (full duplex)."""
    graph.add_edge(one, other, bandwidth=bandwidth, latency=latency)
    graph.add_edge(other, one, bandwidth=bandwidth, latency=latency)

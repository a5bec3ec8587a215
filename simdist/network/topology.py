"""Base class of the networks a scenario can name: hosts, switches and the links between them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import model_validator

from simdist.errors import InputError
from simdist.network.links import LinkSettings
from simdist.network.network import Network
from simdist.network.placement import PlacementSettings
from simdist.network.routing import RoutingPolicy
from simdist.registry import Registry
from simdist.settings import NaturalInt
from simdist.units import Rate, Seconds

if TYPE_CHECKING:
    import networkx as nx


class Topology(PlacementSettings, LinkSettings, ABC):
    """A network as a scenario describes it.

    Attributes:
        topology: name in the registry.
        bandwidth: rate in bit/s of the links that the topology's first line speaks of, each direction.
        upload: rate of these links in the direction from the hosts to the network, where it differs.
        latency: seconds from one end of such a link to the other.
        routing: ``shortest``: each pair of hosts takes the first of its shortest paths; ``ecmp``: pairs are spread over
            all their paths of equal latency and hops.
        ecmp_seed: draws another spread.
        collectives: plan that carries out collectives, or profile that chooses one (``simdist list collectives``).
        mode: ``simulated`` never waits; ``paced`` holds transfers back so that wall time follows simulated time.
    """

    #: whether links have a side of the hosts and a side of the network, so that ``upload`` means something
    has_uplinks: ClassVar[bool] = False

    topology: str
    bandwidth: Rate = 1e9
    upload: Rate | None = None
    latency: Seconds = 50e-6
    routing: RoutingPolicy = "shortest"
    ecmp_seed: NaturalInt = 0
    collectives: str = "ring"
    mode: Literal["simulated", "paced"] = "simulated"

    @model_validator(mode="after")
    def _upload_means_something(self) -> Topology:
        if self.upload is not None and not self.has_uplinks:
            raise ValueError(
                f"got upload with topology {self.topology!r}, whose links do not lead from hosts to a network; "
                "expected upload: null, or a topology such as 'star'"
            )
        return self

    @abstractmethod
    def graph(self, hosts: int) -> nx.DiGraph[str]:
        """Return hosts and switches as nodes and directed links as edges.

        Edges carry ``bandwidth`` (bit/s), ``latency`` (s) and, if need be, ``name`` and ``duplex`` (``full``, or
        ``half``: both directions share one bandwidth).

        Args:
            hosts: number of hosts: as many as there are workers, unless the settings of placement say otherwise.

        Raises:
            InputError: when the topology does not fit so many hosts.
        """

    def hosts(self, count: int) -> tuple[str, ...]:
        """Return the nodes of so many hosts, in the order in which workers are placed on them."""
        return tuple(f"host{host}" for host in range(count))

    def clusters(self, count: int) -> tuple[tuple[str, ...], ...]:
        """Return the hosts in groups that are near each other: each host once (default: all in one group)."""
        return (self.hosts(count),)

    def network(self, workers: int) -> Network:
        """Return the routes and links between so many workers.

        Raises:
            InputError: when a worker's host is missing or cannot be reached, or the topology does not fit.
        """
        count = self.hosts_needed(workers)
        graph, hosts = self.graph(count), self.hosts(count)
        if len(hosts) != count:
            raise InputError(
                f"got {len(hosts)} hosts from hosts({count}) of topology {self.topology!r}; expected {count}"
            )
        cluster_of = {host: index for index, cluster in enumerate(self.clusters(count)) for host in cluster}
        if apart := [host for host in hosts if host not in cluster_of]:
            raise InputError(
                f"got clusters({count}) of topology {self.topology!r} without the host {apart[0]!r}; expected all"
            )
        placed = [hosts[host] for host in self.place(workers, [cluster_of[host] for host in hosts])]
        if len(set(cluster_of.values())) == 1:
            # where no hosts are nearer to each other than others, workers are that share one
            cluster_of = {host: index for index, host in enumerate(cluster_of)}
        return Network(
            graph,
            placed,
            links=self,
            routing=self.routing,
            ecmp_seed=self.ecmp_seed,
            islands=[cluster_of[host] for host in placed],
        )

    def join_host(self, graph: nx.DiGraph[str], host: str, switch: str, widening: float = 1.0) -> None:
        """Add a link to the network, both directions: ``upload`` there and ``bandwidth`` back, times ``widening``."""
        there = self.bandwidth if self.upload is None else self.upload
        graph.add_edge(host, switch, bandwidth=there * widening, latency=self.latency)
        graph.add_edge(switch, host, bandwidth=self.bandwidth * widening, latency=self.latency)


topologies: Registry[type[Topology]] = Registry("topology")


def add_link(graph: nx.DiGraph[str], one: str, other: str, bandwidth: float, latency: float) -> None:
    """Join two nodes by one link in each direction (full duplex)."""
    graph.add_edge(one, other, bandwidth=bandwidth, latency=latency)
    graph.add_edge(other, one, bandwidth=bandwidth, latency=latency)


def runs(hosts: tuple[str, ...], size: int) -> tuple[tuple[str, ...], ...]:
    """Cut hosts into runs of one size; the last may be shorter."""
    return tuple(hosts[first : first + size] for first in range(0, len(hosts), size))

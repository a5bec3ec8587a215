"""Wide-area topology: regions with a latency and a bandwidth for every pair."""

from __future__ import annotations

from itertools import permutations
from typing import Annotated, TypeAlias, TypeVar

import networkx as nx
from pydantic import Field, model_validator

from simdist.errors import InputError
from simdist.network.topology import Topology, add_link, topologies
from simdist.settings import PositiveInt
from simdist.units import Rate, Seconds

T = TypeVar("T")
Matrix: TypeAlias = tuple[tuple[T | None, ...], ...]


@topologies.register("wan")
class Wan(Topology):
    """Regions of hosts, and a slow link from each region to each other, with its own bandwidth and latency.

    Each host has its own up- and downlink of ``local_bandwidth`` and ``local_latency`` to its region's router; all
    traffic from one region to another shares one link. A path takes 2 ``local_latency`` within a region, and the
    latency of the link more between two regions, unless the way over a third region is shorter: links of the Internet
    do break the triangle inequality (Savage et al., SIGCOMM 1999). Two halves of the regions exchange the sum of the
    bandwidths between them. Hosts are counted region by region, in the order given. Yuan et al., NeurIPS 2022
    (Decentralized Training of Foundation Models in Heterogeneous Environments), publish such matrices.

    Attributes:
        regions: name of each region and the number of its hosts.
        bandwidths: bit/s from the region of the row to that of the column, in the order of ``regions``; null: no link;
            the diagonal is null. Without a matrix: ``bandwidth`` everywhere.
        latencies: the same in seconds. Without it: ``latency`` everywhere.
        local_bandwidth: of a host's link to its region's router, each direction.
        local_latency: of such a link.
    """

    topology: str = "wan"
    regions: Annotated[dict[str, PositiveInt], Field(min_length=1)]
    bandwidths: Matrix[Rate] | None = None
    latencies: Matrix[Seconds] | None = None
    local_bandwidth: Rate = 10e9
    local_latency: Seconds = 50e-6

    @model_validator(mode="after")
    def _matrices_fit(self) -> Wan:
        names = list(self.regions)
        for key, matrix in (("bandwidths", self.bandwidths), ("latencies", self.latencies)):
            if matrix is None:
                continue
            shape = [len(matrix), *sorted({len(row) for row in matrix})]
            if shape != [len(names)] * 2:
                raise ValueError(
                    f"got {key} with {len(matrix)} rows of {', '.join(map(str, shape[1:]))} for {len(names)} regions; "
                    f"expected one row and one column for each of {', '.join(names)}"
                )
            for name, row, place in zip(names, matrix, range(len(names)), strict=True):
                if row[place] is not None:
                    raise ValueError(
                        f"got {row[place]!r} in {key} from {name!r} to itself; expected null, and the links within "
                        "regions under local_bandwidth and local_latency"
                    )
        for one, other in permutations(range(len(names)), 2):
            given = [matrix[one][other] is None for matrix in (self.bandwidths, self.latencies) if matrix is not None]
            if len(set(given)) > 1:
                raise ValueError(
                    f"got only one of bandwidth and latency from {names[one]!r} to {names[other]!r}; expected both, or "
                    "null in both matrices for no link"
                )
        return self

    def graph(self, hosts: int) -> nx.DiGraph[str]:
        graph: nx.DiGraph[str] = nx.DiGraph()
        names = list(self.regions)
        for region, cluster in zip(names, self.clusters(hosts), strict=True):
            for host in cluster:
                add_link(graph, host, region, self.local_bandwidth, self.local_latency)
        for one, other in permutations(range(len(names)), 2):
            bandwidth = self.bandwidth if self.bandwidths is None else self.bandwidths[one][other]
            latency = self.latency if self.latencies is None else self.latencies[one][other]
            if bandwidth is not None and latency is not None:
                graph.add_edge(names[one], names[other], bandwidth=bandwidth, latency=latency)
        return graph

    def hosts(self, count: int) -> tuple[str, ...]:
        return tuple(host for cluster in self.clusters(count) for host in cluster)

    def clusters(self, count: int) -> tuple[tuple[str, ...], ...]:
        room = sum(self.regions.values())
        if room != count:
            raise InputError(
                f"network.regions: got {self.regions}, {room} hosts, for {count} hosts; expected regions with {count} "
                f"together, or network.host_count={room}"
            )
        return tuple(tuple(f"{region}/host{host}" for host in range(size)) for region, size in self.regions.items())

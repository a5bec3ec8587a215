"""Small networks of every kind: laws that hold for all topologies run over these. A new one joins by one line."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from simdist.network import (
    Dragonfly,
    FatTree,
    FromFile,
    FullMesh,
    Line,
    Network,
    RailOptimised,
    RandomGeometric,
    Ring,
    Star,
    Topology,
    Torus,
    Tree,
    TwoLevel,
    Wan,
)


class Sample(NamedTuple):
    """A topology and a number of workers that fits it; whether both directions of all its links are alike."""

    topology: Topology
    workers: int
    symmetric: bool = True

    @property
    def network(self) -> Network:
        return self.topology.network(self.workers)


SAMPLES: dict[str, Sample] = {
    "star": Sample(Star(), 5),
    "star, slow upload": Sample(Star(bandwidth="1Gbit/s", upload="100Mbit/s"), 4, symmetric=False),
    "star, shared hosts": Sample(Star(workers_per_host=2), 6),
    "star, half duplex": Sample(Star(duplex="half"), 4),
    "full-mesh": Sample(FullMesh(), 5),
    "ring": Sample(Ring(), 7),
    "ring of two": Sample(Ring(), 2),
    "line": Sample(Line(), 5),
    "tree": Sample(Tree(arity=2, growth=2), 7),
    "fat-tree": Sample(FatTree(), 16),
    "fat-tree, not full": Sample(FatTree(ports=4, oversubscription=2, routing="shortest"), 7),
    "torus": Sample(Torus(), 12),
    "torus in 3D": Sample(Torus(dims=(3, 2, 4)), 24),
    "torus, ecmp": Sample(Torus(dims=(4, 4), routing="ecmp"), 16),
    "dragonfly": Sample(Dragonfly(routers=2, hosts_per_router=1, global_links=1, global_latency="1ms"), 6),
    "dragonfly, not full": Sample(Dragonfly(groups=5, routing="ecmp"), 19),
    "rail-optimised": Sample(RailOptimised(server_size=4), 12),
    "two-level": Sample(TwoLevel(island_size=3), 9),
    "wan": Sample(
        Wan(
            regions={"us": 3, "eu": 2, "asia": 1},
            bandwidths=((None, 1e9, 5e8), (2e9, None, 1e8), (5e8, None, None)),
            latencies=((None, 0.04, 0.08), (0.045, None, 0.2), (0.09, None, None)),
        ),
        6,
        symmetric=False,
    ),
    "wan, all alike": Sample(Wan(regions={"us": 2, "eu": 2}, bandwidth=1e8, latency=0.1), 4),
    "random-geometric": Sample(RandomGeometric(), 12),
    "file": Sample(FromFile(path=str(Path(__file__).with_name("cities.yaml"))), 3, symmetric=False),
}

each_sample = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)


def crossed(network: Network, source: int, target: int) -> list[str]:
    """The names of the links from one worker to another."""
    return [network.links[link] for link in network.route(source, target).links]

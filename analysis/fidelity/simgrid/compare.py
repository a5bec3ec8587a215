"""The same random flows through our network model and through SimGrid's, and how far their times are apart.

SimGrid is set to its plain fluid model: CM02 without correction factors, without the window bound of TCP and without
cross-traffic of acknowledgements. Routes and capacities are those of our :class:`simdist.network.Network`. Two
differences remain, and both come from latency: SimGrid lets a flow wait for its latency before it takes bandwidth (we
let the last byte wait), and shares a full link among its flows by the inverse of their latencies, as TCP does (we share
equally). So the models are one where all latencies are equal or zero.

SimGrid's default ``network/optim: Lazy`` is not exact when latencies are not zero: on a star with equal latencies,
durations of 100 flows that start together are up to 13 % off. ``Full`` is, and is used.
"""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypedDict

import numpy as np

from simdist.network import FatTree, FlowSimulator, Network, Star, Topology, TwoLevel
from simdist.network.sharing import Floats

ORACLE = Path(__file__).with_name("oracle.py")
#: the Python that Debian's python3-simgrid is installed for
PYTHON = "/usr/bin/python3"

PLAIN: dict[str, object] = {
    "network/model": "CM02",
    "network/TCP-gamma": 0,
    "network/weight-S": 0,
    "network/crosstraffic": 0,
    "network/bandwidth-factor": 1,
    "network/latency-factor": 1,
    "network/optim": "Full",
    "maxmin/precision": 1e-9,
    "surf/precision": 1e-12,
}
LAZY = PLAIN | {"network/optim": "Lazy"}
#: SimGrid's default model, calibrated on TCP over a LAN (Velho & Legrand 2009)
LV08: dict[str, object] = {"network/model": "LV08"}


class Flow(TypedDict):
    """A message between two workers: bytes, and seconds at which it starts."""

    source: int
    target: int
    size: int
    start: float


@dataclass(frozen=True)
class Played:
    """Arrival times in seconds, in the order of the flows, and the CPU seconds that the simulation took."""

    arrivals: tuple[float, ...]
    cpu_seconds: float


@cache
def why_not() -> str | None:
    """Return why SimGrid cannot be run here, or None if it can."""
    try:
        done = subprocess.run([PYTHON, "-c", "import simgrid"], capture_output=True, text=True, timeout=60)
    except OSError as error:
        return f"no {PYTHON}: {error}"
    return None if done.returncode == 0 else f"{PYTHON} has no SimGrid: install Debian's python3-simgrid"


def networks(latency: float) -> dict[str, Network]:
    """Return the platforms: 16 workers, links of 1 Gbit/s (100 Mbit/s between islands), one latency for every link."""
    topologies: dict[str, Topology] = {
        "star": Star(bandwidth=1e9, latency=latency),
        "two-level": TwoLevel(
            bandwidth=1e8, latency=latency, island_size=4, island_bandwidth=1e9, island_latency=latency
        ),
        "fat-tree": FatTree(bandwidth=1e9, latency=latency, oversubscription=2),
    }
    return {name: topology.network(16) for name, topology in topologies.items()}


def random_flows(network: Network, count: int, spread: float, seed: int) -> list[Flow]:
    """Return messages of 10 kB to 10 MB between random workers, which start within ``spread`` seconds."""
    random = np.random.default_rng(seed)
    flows: list[Flow] = []
    for _ in range(count):
        source, target = (int(worker) for worker in random.choice(network.workers, 2, replace=False))
        size, start = int(10 ** random.uniform(4, 7)), float(random.uniform(0, spread))
        flows.append({"source": source, "target": target, "size": size, "start": start})
    return flows


def play_here(network: Network, flows: list[Flow]) -> Played:
    """Play flows with our simulator."""
    begin = time.process_time()
    simulator = FlowSimulator(network.sharing)
    arrivals = [0.0] * len(flows)

    def advance(to: float) -> None:
        while (upcoming := simulator.next_time()) is not None and upcoming <= to:
            for flow in simulator.advance(upcoming):
                arrivals[flow] = upcoming

    for flow in sorted(range(len(flows)), key=lambda flow: flows[flow]["start"]):
        one = flows[flow]
        advance(one["start"])
        simulator.start(flow, network.route(one["source"], one["target"]), one["size"], one["start"])
    advance(float("inf"))
    return Played(tuple(arrivals), time.process_time() - begin)


def play_there(network: Network, flows: list[Flow], settings: dict[str, object] = PLAIN) -> Played:
    """Play flows with SimGrid, in a process of its own."""
    pairs = sorted({(flow["source"], flow["target"]) for flow in flows})
    pairs = sorted({*pairs, *((target, source) for source, target in pairs)})  # acknowledgements have a way back
    routes = [(source, target, network.route(source, target)) for source, target in pairs]
    case = {
        "settings": settings,
        "capacities": network.capacities.tolist(),
        "workers": network.workers,
        "routes": [(source, target, route.links, route.latency) for source, target, route in routes],
        "flows": [(flow["source"], flow["target"], flow["size"], flow["start"]) for flow in flows],
    }
    done = subprocess.run(
        [PYTHON, str(ORACLE)], input=json.dumps(case), capture_output=True, text=True, check=True, timeout=600
    )
    answer = json.loads(done.stdout)
    return Played(tuple(answer["arrivals"]), answer["cpu_seconds"])


def deviations(flows: list[Flow], ours: Played, theirs: Played) -> Floats:
    """Return the signed relative error of each flow's duration, ours against SimGrid's."""
    starts = np.array([flow["start"] for flow in flows])
    errors: Floats = (np.array(ours.arrivals) - starts) / (np.array(theirs.arrivals) - starts) - 1
    return errors

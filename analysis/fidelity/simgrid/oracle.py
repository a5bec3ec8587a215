"""Run by the Python that has SimGrid (``/usr/bin/python3``): plays flows with it; JSON on stdin, JSON on stdout.

In: ``settings`` (SimGrid's ``network/...`` keys and others), ``capacities`` (bit/s of each link), ``workers`` (number),
``routes`` (``[source, target, [link, ...], latency in s]``; every pair that a flow takes) and ``flows``
(``[source, target, bytes, start in s]``). Out: ``arrivals`` (s, in the order of the flows), ``cpu_seconds`` of the
simulation alone, ``version``.
"""

from __future__ import annotations

import json
import sys
import time
from importlib import import_module
from typing import Any

# no dependency of ours: this file is for the system's Python, where Debian's python3-simgrid is
simgrid: Any = import_module("simgrid")

#: bytes/s of the links that add the latency of a route and are never full
UNLIMITED = 1e18


def platform(case: dict[str, Any]) -> list[Any]:
    """Build the links and routes of a case as they are, with no routing of SimGrid's own; return the hosts."""
    zone = simgrid.NetZone.create_full_zone("zone")
    hosts = [zone.create_host(f"worker{worker}", 1e9) for worker in range(case["workers"])]
    links = [zone.create_link(f"link{index}", rate / 8) for index, rate in enumerate(case["capacities"])]
    latencies: dict[float, Any] = {}
    for link in links:
        link.set_latency(0).seal()
    for source, target, crossed, latency in case["routes"]:
        if latency not in latencies:
            carrier = zone.create_link(f"latency{latency!r}", UNLIMITED).set_latency(latency)
            latencies[latency] = carrier.seal()
        route = [simgrid.LinkInRoute(links[index]) for index in crossed] + [simgrid.LinkInRoute(latencies[latency])]
        zone.add_route(hosts[source].netpoint, hosts[target].netpoint, None, None, route, False)
    zone.seal()
    return hosts


def main() -> None:
    case = json.load(sys.stdin)
    settings = [f"--cfg={key}:{value}" for key, value in case["settings"].items()]
    engine = simgrid.Engine(["oracle", "--log=root.thresh:error", *settings])
    hosts = platform(case)
    arrivals: list[float] = [0.0] * len(case["flows"])

    def play() -> None:
        order = sorted(range(len(arrivals)), key=lambda flow: case["flows"][flow][3])
        comms = []
        for flow in order:
            source, target, size, start = case["flows"][flow]
            if start > engine.clock:
                simgrid.this_actor.sleep_until(start)
            comms.append(simgrid.Comm.sendto_async(hosts[source], hosts[target], size))
        simgrid.Comm.wait_all(comms)
        for flow, comm in zip(order, comms, strict=True):
            arrivals[flow] = comm.finish_time

    simgrid.Actor.create("play", hosts[0], play)
    begin = time.process_time()
    engine.run()
    busy = time.process_time() - begin
    json.dump({"arrivals": arrivals, "cpu_seconds": busy, "version": simgrid.simgrid_version}, sys.stdout)


if __name__ == "__main__":
    main()

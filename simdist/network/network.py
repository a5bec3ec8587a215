"""The network between workers: shared capacities, and one fixed route for every pair of workers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from numbers import Real
from typing import Any, NamedTuple, TypeAlias

import networkx as nx
import numpy as np
import numpy.typing as npt

from simdist.errors import InputError, suggest
from simdist.network.flows import Route
from simdist.network.links import LinkSettings
from simdist.network.routing import Routes, RoutingPolicy
from simdist.network.sharing import Floats, Sharing

_HERE = Route((), 0.0)

Index: TypeAlias = "npt.NDArray[np.intp]"


class Ends(NamedTuple):
    """Where each worker's messages enter and leave the switches; shape [workers] each.

    Attributes:
        host: numbers its host.
        site: numbers the node that its host is attached to, or the host itself if that has several neighbours.
        up, down: the links between the two, there and back; -1 where ``site`` is the host.
    """

    host: Index
    site: Index
    up: Index
    down: Index


class Network:
    """Routes and capacities of a graph, seen from the workers.

    A capacity belongs to one direction of a link, or to both directions of a half-duplex link, or, with
    ``host_bandwidth``, to what the workers of one host exchange. Without it they exchange over no link.

    Attributes:
        links: name of each capacity: an edge's attribute ``name``, else ``"host0->switch"``, ``"a<->b"`` for both
            directions, ``"host0 inside"`` within a host.
        capacities: bit/s that payloads get of each, where nothing varies.
        sharing: max-min fair rates on these capacities.
        hosts: the host of each worker.
        islands: the island of each worker: those of one island are near each other.

    Args:
        graph: directed links with ``bandwidth`` (bit/s), ``latency`` (s), and optionally ``name`` and ``duplex``, which
            goes before the duplex of the settings.
        hosts: the node of each worker; several workers may share one.
        links: what holds for all links (default: full duplex, no headers, nothing varies).
        routing: ``shortest`` or ``ecmp`` (see :mod:`simdist.network.routing`).
        ecmp_seed: draws another assignment of pairs to paths.
        islands: as above (default: all workers are on one).

    Raises:
        InputError: when a worker's host is not in the graph, one host cannot reach another, or a link is impossible.
    """

    def __init__(
        self,
        graph: nx.DiGraph[str],
        hosts: Sequence[str],
        *,
        links: LinkSettings | None = None,
        routing: RoutingPolicy = "shortest",
        ecmp_seed: int = 0,
        islands: Sequence[int] | None = None,
    ) -> None:
        settings = LinkSettings() if links is None else links
        self.hosts = tuple(hosts)
        self.islands = (0,) * len(self.hosts) if islands is None else tuple(islands)
        assert len(self.islands) == len(self.hosts)
        _check_reachable(graph, self.hosts)
        names, bandwidths, link_of = _capacities(graph, settings.duplex)
        variation = settings.variation(names, bandwidths)
        shared = [host for host, workers in Counter(self.hosts).items() if workers > 1]
        local = shared if settings.host_bandwidth else []
        self.links = (*names, *(f"{host} inside" for host in local))
        self.capacities = np.concatenate(
            [bandwidths * settings.efficiency, np.full(len(local), settings.host_bandwidth or 0.0)]
        )
        self.sharing = Sharing(self.capacities, variation, self.links)
        self._routing = routing
        self._paths = Routes(graph, link_of, routing, ecmp_seed)
        self._overhead = settings.message_overhead
        # Routes by pair of hosts; a pair of one host is for two workers on it.
        self._routes = {(host, host): Route((), settings.host_latency) for host in shared}
        for place, host in enumerate(local, start=len(names)):
            self._routes[host, host] = Route((place,), settings.host_latency)

    @property
    def workers(self) -> int:
        return len(self.hosts)

    @property
    def varies(self) -> bool:
        """Whether any capacity changes with time."""
        return self.sharing.varies

    def route(self, source: int, target: int) -> Route:
        """Return the links and the latency (s) from one worker to another; a worker reaches itself at once."""
        if source == target:
            return _HERE
        pair = self.hosts[source], self.hosts[target]
        found = self._routes.get(pair)
        if found is None:
            links, latency = self._paths.route(*pair)
            found = self._routes[pair] = Route(links, latency + self._overhead)
        return found

    @cached_property
    def ends(self) -> Ends | None:
        """Where messages enter and leave the switches; None where hosts differ in latency, or paths in more (ECMP)."""
        if self._routing != "shortest":
            return None
        # a host may be another's only neighbour: as that one's site it is told apart from itself
        numbers: dict[tuple[str, bool], int] = {}
        rows, latencies = [], set()
        for host in dict.fromkeys(self.hosts):
            access = self._paths.access(host)
            if access is None:
                rows.append((numbers.setdefault((host, False), len(numbers)), -1, -1))
            else:
                gate, up, down, *seconds = access
                rows.append((numbers.setdefault((gate, True), len(numbers)), up, down))
                latencies.add(tuple(seconds))
        if len(latencies) > 1:
            return None
        number_of = {host: number for number, host in enumerate(dict.fromkeys(self.hosts))}
        number = np.array([number_of[host] for host in self.hosts], dtype=np.intp)
        return Ends(number, *np.array(rows, dtype=np.intp).T[:, number])


def _capacities(graph: nx.DiGraph[str], duplex: str) -> tuple[list[str], Floats, dict[tuple[str, str], int]]:
    """Return name and bandwidth of each capacity, and the index of the one that each directed link uses."""
    names: list[str] = []
    bandwidths: list[float] = []
    link_of: dict[tuple[str, str], int] = {}
    for source, target, data in graph.edges(data=True):
        where = f"link {source!r} -> {target!r}"
        bandwidth = _number(data, "bandwidth", where)
        if not bandwidth > 0 or _number(data, "latency", where) < 0:
            raise InputError(
                f"got bandwidth {bandwidth:g} and latency {data['latency']:g} on {where}; "
                "expected a bandwidth above zero and a latency of zero or more"
            )
        half = data.get("duplex", duplex) == "half"
        back = link_of.get((target, source)) if half else None
        if back is not None:
            if bandwidths[back] != bandwidth:
                raise InputError(
                    f"got bandwidths {bandwidths[back]:g} and {bandwidth:g} for the two directions of {where}, which "
                    "is half-duplex; expected one bandwidth, as both share it, or duplex: full"
                )
            link_of[source, target] = back
            continue
        link_of[source, target] = len(names)
        names.append(str(data.get("name", f"{source}<->{target}" if half else f"{source}->{target}")))
        bandwidths.append(bandwidth)
    return names, np.array(bandwidths, dtype=np.float64), link_of


def _number(link: dict[str, Any], key: str, where: str) -> float:
    value = link.get(key)
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise InputError(f"got {key} {value!r} on {where}; expected a number")
    return float(value)


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

"""Topology from a file: GraphML, node-link JSON or YAML."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import networkx as nx

from simdist.errors import InputError
from simdist.network.graph_files import read_graph
from simdist.network.topology import Topology, topologies
from simdist.settings import AbsolutePath
from simdist.units import Rate, Seconds, parse_rate, parse_time


@topologies.register("file")
class FromFile(Topology):
    """A network read from a GraphML (``.graphml``), node-link JSON (``.json``) or YAML (``.yaml``) file.

    Every link carries ``bandwidth`` (bit/s, or a text such as ``"10Gbit/s"``) and ``latency`` (seconds, or a text
    such as ``"5ms"``), and may carry ``duplex`` (``full``, ``half``) and ``name``; in an undirected file it stands for
    links in both directions. There may be cycles: routes are shortest paths.

    In GraphML and JSON, host i is the node whose attribute ``worker`` is i (a number, or several as ``"0,1"``), else
    the node called ``host<i>`` or ``worker<i>``; the attribute ``cluster`` says which hosts are near each other. In
    YAML they are listed::

        hosts: {europe: [paris, rome], america: [boston]}   # clusters; or just a list
        switches: [atlantic]
        links:
          - {from: paris, to: atlantic, bandwidth: 1Gbit/s, latency: 5ms}

    Attributes:
        path: the file.
        bandwidth: upper limit in bit/s on every link of the file (default: none in practice).
        latency: lower limit in seconds on every link of the file.
    """

    topology: str = "file"
    path: AbsolutePath
    bandwidth: Rate = 1e30
    latency: Seconds = 0.0

    def graph(self, hosts: int) -> nx.DiGraph[str]:
        read = read_graph(Path(self.path))
        graph: nx.DiGraph[str] = nx.DiGraph()
        graph.add_nodes_from((str(node), data) for node, data in read.nodes(data=True))
        for one, other, data in read.edges(data=True):
            link = self._link(data, f"link {str(one)!r} - {str(other)!r} of {self.path}")
            if one == other:
                raise InputError(
                    f"got a link from {str(one)!r} to itself in {self.path}; expected links between two nodes"
                )
            graph.add_edge(str(one), str(other), **link)
            if not read.is_directed():
                if "name" in link and link.get("duplex", self.duplex) == "full":
                    link["name"] = f"{link['name']} back"
                graph.add_edge(str(other), str(one), **link)
        return graph

    def hosts(self, count: int) -> tuple[str, ...]:
        graph = read_graph(Path(self.path))
        placed: dict[int, str] = {}
        for node, data in graph.nodes(data=True):
            for host in _hosts(data.get("worker"), f"node {str(node)!r} of {self.path}"):
                if host in placed:
                    raise InputError(
                        f"got worker {host} on two nodes of {self.path}, {placed[host]!r} and {str(node)!r}; "
                        "expected one"
                    )
                placed[host] = str(node)
        nodes = set(map(str, graph))
        for host in range(count):
            named = (name for name in (f"host{host}", f"worker{host}") if name in nodes)
            if placed.setdefault(host, next(named, "")) == "":
                raise InputError(
                    f"got no node for host {host} of {count} in {self.path}; expected one called 'host{host}' or "
                    f"'worker{host}', one with the attribute worker={host}, or in YAML {count} hosts"
                )
        return tuple(placed[host] for host in range(count))

    def clusters(self, count: int) -> tuple[tuple[str, ...], ...]:
        cluster_of = {str(node): data.get("cluster") for node, data in read_graph(Path(self.path)).nodes(data=True)}
        clusters: dict[Any, list[str]] = {}
        for host in dict.fromkeys(self.hosts(count)):
            clusters.setdefault(cluster_of.get(host), []).append(host)
        return tuple(map(tuple, clusters.values()))

    def _link(self, data: Mapping[str, Any], where: str) -> dict[str, Any]:
        bandwidth = _value(data, "bandwidth", "10Gbit/s", parse_rate, where)
        latency = _value(data, "latency", "5ms", parse_time, where)
        if not bandwidth > 0:
            raise InputError(f"got bandwidth {data['bandwidth']!r} on {where}; expected a rate above zero")
        if not latency >= 0:
            raise InputError(f"got latency {data['latency']!r} on {where}; expected zero or more")
        if data.get("duplex", "full") not in ("full", "half"):
            raise InputError(f"got duplex {data['duplex']!r} on {where}; expected 'full' or 'half'")
        link: dict[str, Any] = {key: data[key] for key in ("duplex", "name") if key in data}
        return link | {"bandwidth": min(self.bandwidth, bandwidth), "latency": max(self.latency, latency)}


def _value(link: Mapping[str, Any], key: str, example: str, read: Callable[[Any], float], where: str) -> float:
    if key not in link:
        raise InputError(f'got no {key} on {where}; expected one such as {key}="{example}"')
    try:
        return read(link[key])
    except ValueError as error:
        raise InputError(f"{key} on {where}: {error}") from error


def _hosts(value: Any, where: str) -> list[int]:
    if value is None:
        return []
    parts = value if isinstance(value, list) else str(value).split(",")
    try:
        hosts = [int(part) for part in parts]
    except (TypeError, ValueError):
        hosts = [-1]
    if min(hosts, default=0) < 0:
        raise InputError(f'got worker={value!r} on {where}; expected a number from 0, or several, as "0,1"')
    return hosts

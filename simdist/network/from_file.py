"""Topology from a file: GraphML or node-link JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

import networkx as nx

from simdist.errors import InputError
from simdist.network.topology import Topology, topologies
from simdist.units import Rate, Seconds, parse_rate, parse_time


@topologies.register("file")
class FromFile(Topology):
    """A network read from a GraphML (``.graphml``) or node-link JSON (``.json``) file.

    Every edge carries ``bandwidth`` (bit/s, or a text such as ``"10Gbit/s"``) and ``latency`` (seconds, or a text
    such as ``"5ms"``); an undirected graph stands for links in both directions. Worker i sits on the node whose
    attribute ``worker`` is i (a number, or several as ``"0,1"``), else on the node called ``worker<i>``.

    Attributes:
        path: the file.
        bandwidth: upper limit in bit/s on every link of the file (default: none in practice).
        latency: lower limit in seconds on every link of the file.
    """

    topology: str = "file"
    path: str
    bandwidth: Rate = 1e30
    latency: Seconds = 0.0

    def graph(self, workers: int) -> nx.DiGraph[str]:
        read = self._read()
        graph: nx.DiGraph[str] = nx.DiGraph()
        graph.add_nodes_from((str(node), data) for node, data in read.nodes(data=True))
        for one, other, data in read.edges(data=True):
            where = f"edge {str(one)!r} - {str(other)!r} of {self.path}"
            link = {
                "bandwidth": min(self.bandwidth, _bandwidth(data, where)),
                "latency": max(self.latency, _latency(data, where)),
            }
            graph.add_edge(str(one), str(other), **link)
            if not read.is_directed():
                graph.add_edge(str(other), str(one), **link)
        return graph

    def hosts(self, workers: int) -> tuple[str, ...]:
        placed: dict[int, str] = {}
        for node, data in self._read().nodes(data=True):
            for worker in _workers(data.get("worker"), f"node {str(node)!r} of {self.path}"):
                if worker in placed:
                    raise InputError(
                        f"got worker {worker} on two nodes of {self.path}, {placed[worker]!r} and {str(node)!r}; "
                        "expected one"
                    )
                placed[worker] = str(node)
        return tuple(placed.get(worker, f"worker{worker}") for worker in range(workers))

    def _read(self) -> nx.Graph[Any]:
        path = Path(self.path)
        if not path.is_file():
            raise InputError(f"got network.path {self.path!r}, which does not exist; expected a GraphML or JSON file")
        if path.suffix == ".json":
            return _read_json(path)
        if path.suffix in (".graphml", ".xml"):
            try:
                graph: nx.Graph[Any] = nx.read_graphml(path)
            except (ParseError, nx.NetworkXError, KeyError, ValueError) as error:
                raise InputError(f"got {self.path}, which is not GraphML: {error}") from error
            if graph.is_multigraph():
                raise InputError(f"got parallel edges in {self.path}; expected one link per pair and direction")
            return graph
        raise InputError(f"got network.path {self.path!r}; expected a file that ends in .graphml or .json")


def _read_json(path: Path) -> nx.Graph[Any]:
    """Read node-link JSON: ``{"directed": ..., "nodes": [{"id": ...}], "edges": [{"source": ..., "target": ...}]}``.

    Written out because networkx renamed the ``links`` key to ``edges``; both are taken.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        graph: nx.Graph[Any] = nx.DiGraph() if data.get("directed", False) else nx.Graph()
        for node in data["nodes"]:
            graph.add_node(node["id"], **{key: value for key, value in node.items() if key != "id"})
        for edge in data["edges"] if "edges" in data else data["links"]:
            one, other = edge["source"], edge["target"]
            unknown = [end for end in (one, other) if end not in graph]
            if unknown:
                raise InputError(f"got an edge to {unknown[0]!r} in {path}, which is not among its nodes")
            if graph.has_edge(one, other):
                raise InputError(f"got parallel edges in {path}; expected one link per pair and direction")
            graph.add_edge(one, other, **{key: edge[key] for key in edge if key not in ("source", "target")})
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"got {path}, which is not node-link JSON ({type(error).__name__}: {error}); expected "
            '{"nodes": [{"id": ...}], "edges": [{"source": ..., "target": ..., "bandwidth": ..., "latency": ...}]}'
        ) from error
    return graph


def _bandwidth(edge: dict[str, Any], where: str) -> float:
    if "bandwidth" not in edge:
        raise InputError(f'got no bandwidth on {where}; expected a rate such as bandwidth="10Gbit/s"')
    try:
        rate = parse_rate(edge["bandwidth"])
    except ValueError as error:
        raise InputError(f"bandwidth on {where}: {error}") from error
    if not rate > 0:
        raise InputError(f"got bandwidth {edge['bandwidth']!r} on {where}; expected a rate above zero")
    return rate


def _latency(edge: dict[str, Any], where: str) -> float:
    if "latency" not in edge:
        raise InputError(f'got no latency on {where}; expected a time such as latency="5ms"')
    try:
        seconds = parse_time(edge["latency"])
    except ValueError as error:
        raise InputError(f"latency on {where}: {error}") from error
    if not seconds >= 0:
        raise InputError(f"got latency {edge['latency']!r} on {where}; expected zero or more")
    return seconds


def _workers(value: Any, where: str) -> list[int]:
    if value is None:
        return []
    parts = value if isinstance(value, list) else str(value).split(",")
    try:
        return [int(part) for part in parts]
    except (TypeError, ValueError) as error:
        raise InputError(f'got worker={value!r} on {where}; expected a number or several, as "0,1"') from error

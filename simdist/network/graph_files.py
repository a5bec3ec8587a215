"""Graphs from files: GraphML, node-link JSON and our own YAML, as networkx graphs whose links are not checked yet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

import networkx as nx

from simdist.errors import InputError, suggest
from simdist.yaml_text import parse

_NODE_LINK = '{"nodes": [{"id": ...}], "edges": [{"source": ..., "target": ..., "bandwidth": ..., "latency": ...}]}'
_YAML_KEYS = ("hosts", "switches", "links", "directed")
_LINK_KEYS = ("from", "to", "bandwidth", "latency", "duplex", "name")


def read_graph(path: Path) -> nx.Graph[Any]:
    """Return the graph of a file, directed or not, frozen, with the attributes of nodes and links as they stand there.

    Raises:
        InputError: for a file that is missing, of another kind or malformed, names nodes that it does not have, or has
            two links between the same nodes.
    """
    if not path.is_file():
        raise InputError(f"got network.path {str(path)!r}, which does not exist; expected a GraphML, JSON or YAML file")
    if path.suffix not in _READERS:
        raise InputError(
            f"got network.path {str(path)!r}; expected a file that ends in .graphml or .xml, .json, or .yaml or .yml"
        )
    state = path.stat()
    return _read(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=4)
def _read(path: Path, changed: int, size: int) -> nx.Graph[Any]:
    """Read a file once for as long as it stays as it is: one network asks for hosts, clusters and links in turn."""
    try:
        graph = _READERS[path.suffix](path)
    except UnicodeDecodeError as error:
        raise InputError(f"got {path}, which cannot be read ({error}); expected a text in UTF-8") from error
    nx.freeze(graph)
    return graph


def _read_graphml(path: Path) -> nx.Graph[Any]:
    try:
        graph: nx.Graph[Any] = nx.read_graphml(path)
    except (ParseError, nx.NetworkXError, KeyError, ValueError) as error:
        raise InputError(f"got {path}, which is not GraphML: {error}") from error
    if graph.is_multigraph():
        one, other = next((a, b) for a, b in graph.edges() if graph.number_of_edges(a, b) > 1)
        raise _parallel(one, other, path)
    return graph


def _read_json(path: Path) -> nx.Graph[Any]:
    """Read node-link JSON: ``{"directed": ..., "nodes": [{"id": ...}], "edges": [{"source": ..., "target": ...}]}``.

    Written out because networkx renamed the ``links`` key to ``edges``; both are taken.
    """
    text = path.read_text(encoding="utf-8")
    try:
        data = json.loads(text)
        graph: nx.Graph[Any] = nx.DiGraph() if data.get("directed", False) else nx.Graph()
        for node in data["nodes"]:
            graph.add_node(node["id"], **{key: value for key, value in node.items() if key != "id"})
        for edge in data["edges"] if "edges" in data else data["links"]:
            attributes = {key: edge[key] for key in edge if key not in ("source", "target")}
            _join(graph, edge["source"], edge["target"], attributes, path)
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"got {path}, which is not node-link JSON ({type(error).__name__}: {error}); expected {_NODE_LINK}"
        ) from error
    return graph


def _read_yaml(path: Path) -> nx.Graph[Any]:
    """Read ``hosts`` (a list, or clusters with a list each), ``switches``, ``links`` and ``directed``."""
    data = _section(parse(path.read_text(encoding="utf-8"), str(path)), _YAML_KEYS, ("hosts", "links"), str(path))
    directed = data.get("directed", False)
    if not isinstance(directed, bool):
        raise InputError(f"{path}, directed: got {directed!r}; expected true or false")
    graph: nx.Graph[Any] = nx.DiGraph() if directed else nx.Graph()
    hosts = data["hosts"]
    clusters = hosts if isinstance(hosts, Mapping) else {"": hosts}
    for cluster, names in clusters.items():
        for name in _names(names, f"{path}, hosts" + (f".{cluster}" if cluster else "")):
            _add_once(graph, name, path, worker=graph.number_of_nodes(), cluster=cluster)
    for name in _names(data.get("switches", []), f"{path}, switches"):
        _add_once(graph, name, path)
    if not isinstance(data["links"], list):
        raise InputError(f"{path}, links: got {data['links']!r}; expected a list of links")
    for place, item in enumerate(data["links"]):
        link = dict(_section(item, _LINK_KEYS, ("from", "to"), f"{path}, links.{place}"))
        _join(graph, link.pop("from"), link.pop("to"), link, path)
    return graph


_READERS = {
    ".graphml": _read_graphml,
    ".xml": _read_graphml,
    ".json": _read_json,
    ".yaml": _read_yaml,
    ".yml": _read_yaml,
}


def _section(data: Any, known: tuple[str, ...], needed: tuple[str, ...], where: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise InputError(f"{where}: got {data!r}; expected a section with {', '.join(known)}")
    for key in data:
        if key not in known:
            hint = suggest(str(key), known)
            raise InputError(f"{where}: got an unknown key {key!r}; expected some of {', '.join(known)}.{hint}")
    for key in needed:
        if key not in data:
            raise InputError(f"{where}: got no {key!r}; expected a section with {', '.join(known)}")
    return data


def _names(names: Any, where: str) -> list[str]:
    if not isinstance(names, list) or not all(isinstance(name, (str, int)) for name in names):
        raise InputError(f"{where}: got {names!r}; expected a list of names")
    return [str(name) for name in names]


def _add_once(graph: nx.Graph[Any], name: str, path: Path, **attributes: Any) -> None:
    if name in graph:
        raise InputError(f"got {name!r} twice among the hosts and switches of {path}; expected another name for each")
    graph.add_node(name, **attributes)


def _join(graph: nx.Graph[Any], one: Any, other: Any, attributes: Mapping[str, Any], path: Path) -> None:
    for end in (one, other):
        if end not in graph:
            hint = suggest(str(end), map(str, graph))
            raise InputError(
                f"got a link to {end!r} in {path}, which is not among its nodes; expected one of them.{hint}"
            )
    if graph.has_edge(one, other):
        raise _parallel(one, other, path)
    graph.add_edge(one, other, **attributes)


def _parallel(one: Any, other: Any, path: Path) -> InputError:
    return InputError(
        f"got parallel links between {str(one)!r} and {str(other)!r} in {path}; expected one per pair and direction"
    )

"""Messages between the same members, round after round: their routes, looked at once for all sizes.

Messages that share no link with others, however indirectly, do not feel them. So the messages of some groups fall into
*clusters*, each priced by itself, and clusters that are alike (same links, as far as capacities go, same latencies) are
priced once for each row of sizes that occurs in them. On a switched network most clusters of a ring are one message.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from simdist.communication.plans.moves import Column, Turn
from simdist.network.flows import Route, drain
from simdist.network.network import Network
from simdist.network.sharing import Floats

Index: TypeAlias = "npt.NDArray[np.intp]"


class Spans(NamedTuple):
    """When the last message of a segment has left its links, and when it has arrived, per group, from its start.

    Shape [groups], or [steps, groups] for a run of segments.
    """

    left: Floats
    arrived: Floats


class _Alike:
    """Clusters that are alike.

    Attributes:
        routes: of the messages of one of them, in order.
        messages: which messages each consists of, numbered group by group; shape [clusters, messages of one].
        groups: the group of each of these.
        starts: the place at which each cluster begins; shape [clusters].
        offsets: how many places after it each message is; shape [messages of one].
    """

    #: sizes of messages that the remembered rows may hold in all
    _REMEMBERED = 2**18

    def __init__(self, network: Network, found: Sequence[_Cluster], per_group: int) -> None:
        self.routes = found[0].routes
        self.messages: Index = np.array([one.messages for one in found], dtype=np.intp)
        self.groups: Index = self.messages // per_group
        self.starts: Index = np.array([one.start for one in found], dtype=np.intp)
        self.offsets: Index = np.array(found[0].offsets, dtype=np.intp)
        self.latency = np.array([route.latency for route in self.routes])
        self._sharing = network.sharing
        self._known: dict[bytes, Floats] = {}
        capacities = network.sharing.capacities
        self._rate = min((float(capacities[link]) for link in self.routes[0].links), default=math.inf)

    def left(self, sizes: Column) -> Floats:
        """Return when messages have left, for some rows of sizes; shapes [rows, messages of one]."""
        if len(self.routes) == 1:
            return np.asarray(sizes * 8.0 / self._rate, dtype=np.float64)
        rows = [row.tobytes() for row in sizes]
        known = {row: self._row(row) for row in dict.fromkeys(rows)}
        return np.stack([known[row] for row in rows])

    def _row(self, row: bytes) -> Floats:
        if row not in self._known:
            if len(self._known) * len(self.routes) >= self._REMEMBERED and self._known:
                del self._known[next(iter(self._known))]
            sizes: Column = np.frombuffer(row, dtype=np.int64)
            self._known[row] = drain(self._sharing, self.routes, sizes.tolist()) - self.latency
        return self._known[row]


class _Cluster(NamedTuple):
    routes: tuple[Route, ...]
    messages: tuple[int, ...]
    start: int
    offsets: tuple[int, ...]


class Lanes:
    """The routes of messages from ``source`` to ``target`` members, in each of several groups that begin together.

    Args:
        groups: the workers of each group; shape [groups, members].
        source, target: of the messages of a group, as members; shape [messages].
    """

    def __init__(self, network: Network, groups: Index, source: Column, target: Column) -> None:
        self._shape = groups.shape[0], len(source)
        routes = [
            network.route(one, other)
            for one, other in zip(groups[:, source].ravel().tolist(), groups[:, target].ravel().tolist(), strict=True)
        ]
        self._latency = np.array([route.latency for route in routes])
        self._crossed: Index = np.array([link for route in routes for link in route.links], dtype=np.intp)
        lengths = [len(route.links) for route in routes]
        self._crosser = np.repeat(np.arange(len(routes)) // max(1, len(source)), lengths)
        alone = self._crossed.size == 0 or np.bincount(self._crossed).max() == 1
        capacities = network.sharing.capacities.tolist()
        by_kind: dict[object, list[_Cluster]] = {}
        for cluster in _single(routes, len(source)) if alone else _clusters(routes, len(source)):
            by_kind.setdefault(_kind(cluster, capacities, len(source)), []).append(cluster)
        self._alike = [_Alike(network, found, len(source)) for found in by_kind.values()]

    @property
    def held_bytes(self) -> int:
        """The memory that these take, about: what is remembered of a message is some Python objects."""
        return 1024 * len(self._latency)

    def mark(self, used: npt.NDArray[np.bool_]) -> None:
        """Mark the links that each group uses; shape [groups, links]."""
        used[self._crosser, self._crossed] = True

    def spans(self, size: Column) -> Spans:
        """Return when the messages of each group, of the given sizes in bytes, have left and arrived."""
        left = np.zeros(len(self._latency))
        for alike in self._alike:
            left[alike.messages] = alike.left(size[alike.messages % len(size)])
        arrived = (left + self._latency).reshape(self._shape)
        return Spans(left.reshape(self._shape).max(axis=1, initial=0.0), arrived.max(axis=1, initial=0.0))

    def turned(self, turn: Turn, steps: int) -> Spans:
        """Return the same for each step of sizes that go around; shapes [steps, groups].

        As sizes go around, what a cluster carries changes only when one of its messages comes to a size unlike the one
        before: seldom. So each kind of cluster is priced once for each row of sizes, and a step is as long as the
        longest row that some cluster has in it.
        """
        shift = turn.hop * (np.arange(steps) + turn.late) % len(turn.sizes)
        left, arrived = np.zeros((steps, self._shape[0])), np.zeros((steps, self._shape[0]))
        same: dict[object, tuple[Floats, Floats]] = {}
        views = list(self._views(turn))
        for group in range(self._shape[0]):
            own = [(number, starts[group]) for number, (starts, _, _, _) in enumerate(views) if group in starts]
            key = tuple((number, starts.tobytes()) for number, starts in own)
            if key not in same:
                same[key] = _longest([(starts, *views[number][1:]) for number, starts in own], shift, len(turn.sizes))
            left[:, group], arrived[:, group] = same[key]
        return Spans(left, arrived)

    def _views(self, turn: Turn) -> Iterator[tuple[dict[int, Index], Index, Floats, Floats]]:
        """Yield for each kind of cluster, and each part of it that belongs to one group, what is the same in all.

        Yields:
            the starts of these clusters by group; the first starts from which a row of sizes holds; when the last
            message of the part has left, and arrived, for each of these rows.
        """
        n = len(turn.sizes)
        changes = np.flatnonzero(turn.sizes != np.roll(turn.sizes, 1))
        for alike in self._alike:
            first = np.unique((changes[:, None] - alike.offsets) % n) if len(changes) else np.zeros(1, dtype=np.intp)
            left = alike.left(turn.sizes[(first[:, None] + alike.offsets) % n])
            arrived = left + alike.latency
            parts: dict[tuple[int, ...], dict[int, list[int]]] = {}
            for groups, start in zip(alike.groups.tolist(), alike.starts.tolist(), strict=True):
                for group in dict.fromkeys(groups):
                    part = tuple(place for place, one in enumerate(groups) if one == group)
                    parts.setdefault(part, {}).setdefault(group, []).append(start)
            for part, starts in parts.items():
                by_group = {group: np.array(found, dtype=np.intp) for group, found in starts.items()}
                yield by_group, first, left[:, part].max(axis=1), arrived[:, part].max(axis=1)


def _longest(views: Sequence[tuple[Index, Index, Floats, Floats]], shift: Index, places: int) -> tuple[Floats, Floats]:
    """Return for each shift when the last message of any cluster has left, and arrived."""
    left, arrived = np.zeros(len(shift)), np.zeros(len(shift))
    for starts, first, lefts, arrivals in views:
        # how many of the clusters start before a place, counted twice around
        before = np.concatenate(([0], np.cumsum(np.tile(np.bincount(starts, minlength=places), 2))))
        lengths = np.diff(np.append(first, first[0] + places))
        for low, length, gone, come in zip(first.tolist(), lengths.tolist(), lefts, arrivals, strict=True):
            at = (low + shift) % places
            some = before[at + length] > before[at]
            np.maximum(left, gone, out=left, where=some)
            np.maximum(arrived, come, out=arrived, where=some)
    return left, arrived


def _single(routes: Sequence[Route], per_group: int) -> Iterator[_Cluster]:
    """Yield messages that share no links as clusters of one."""
    return (_Cluster((route,), (number,), number % per_group, (0,)) for number, route in enumerate(routes))


def _clusters(routes: Sequence[Route], per_group: int) -> Iterator[_Cluster]:
    """Yield the sets of messages that share links, directly or through others."""
    above = list(range(len(routes)))

    def root(one: int) -> int:
        while above[one] != one:
            above[one] = above[above[one]]
            one = above[one]
        return one

    user: dict[int, int] = {}
    for number, route in enumerate(routes):
        for link in route.links:
            other = user.setdefault(link, number)
            if other != number:
                above[root(number)] = root(other)
    together: dict[int, list[int]] = {}
    for number in range(len(routes)):
        together.setdefault(root(number), []).append(number)
    for members in together.values():
        places = sorted({number % per_group for number in members})
        # the start is the place after the widest gap: so clusters that lie alike around a ring look alike
        gaps = [(place - places[i - 1]) % per_group for i, place in enumerate(places)]
        start = places[max(range(len(places)), key=gaps.__getitem__)]
        members.sort(key=lambda number: ((number - start) % per_group, number))
        offsets = tuple((number - start) % per_group for number in members)
        yield _Cluster(tuple(routes[number] for number in members), tuple(members), start, offsets)


def _kind(cluster: _Cluster, capacities: Sequence[float], per_group: int) -> object:
    """Return what clusters that are alike have in common: latencies, and links up to their names."""
    if len(cluster.routes) == 1:  # the narrowest link decides
        (route,) = cluster.routes
        return route.latency, min([capacities[link] for link in route.links], default=math.inf)
    links: dict[int, int] = {}
    groups: dict[int, int] = {}
    own = tuple(groups.setdefault(number // per_group, len(groups)) for number in cluster.messages)
    crossed = tuple(tuple(links.setdefault(link, len(links)) for link in route.links) for route in cluster.routes)
    latencies = tuple(route.latency for route in cluster.routes)
    return latencies, cluster.offsets, own, crossed, tuple(capacities[link] for link in links)

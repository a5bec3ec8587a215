"""Workers, groups, messages and links that a step cannot tell apart: one of each stands for all in a replay.

Colours are refined until they are *equitable*: messages of one colour belong to groups of one colour and cross links
of the same colours, each link of a colour is crossed by equally many messages of each colour, and so on (colour
refinement; Grohe, Kersting, Mladenov & Selman 2014, "Dimension reduction via colour refinement"). Max-min fair rates
follow from capacities and from how many messages cross each link, so all of one colour have one rate, and by induction
over the instants of the replay all that is of one colour happens at one time. Nothing is approximated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from simdist.communication.plans.plan import Round
from simdist.execution.events import Groups
from simdist.execution.lanes import Index
from simdist.network.flows import Route
from simdist.network.network import Network
from simdist.network.sharing import Floats, Sharing

Colours: TypeAlias = "npt.NDArray[np.uint64]"

#: who sends to whom within a group, message by message
Pairs: TypeAlias = "tuple[tuple[int, int], ...]"


@dataclass(frozen=True)
class Pattern:
    """Messages that the groups of an axis send in some round.

    Attributes:
        groups: which of them send these, by their place on the axis: those with one plan.
        uniform: whether in every round of this pattern all messages have one size; otherwise each message of a group is
            told apart from the others.
    """

    axis: str
    pairs: Pairs
    groups: tuple[int, ...]
    uniform: bool

    @property
    def size(self) -> int:
        """How many messages there are, in all groups."""
        return len(self.pairs) * len(self.groups)


class Likeness:
    """What stands for what in one step.

    Attributes:
        worker_of: the class of each worker; shape [workers].
        first: one worker of each class; shape [classes].
        sharing: fair rates on one link of each class.

    Args:
        patterns: all that the groups send in the step.
        ways: for each axis and group what else tells it apart: how it carries out its collectives.
        seconds: of local work; shape [tasks, workers].
        lag: when each worker begins; shape [workers].
    """

    def __init__(
        self,
        network: Network,
        groups: Groups,
        patterns: Sequence[Pattern],
        ways: Mapping[str, Sequence[object]],
        seconds: Floats,
        lag: Floats,
    ) -> None:
        self._groups = groups
        self._patterns = {(one.axis, one.pairs, group): one for one in patterns for group in one.groups}
        sent_in = {one: _Sent.of(one, number, network, groups) for number, one in enumerate(patterns)}
        columns = np.ascontiguousarray(np.vstack([lag, seconds]).T)
        workers = _numbered([row.tobytes() for row in columns])
        links = _numbered(network.capacities.tolist())
        group = {axis: _numbered(own) for axis, own in ways.items()}
        count = -1
        while True:
            crossing = np.zeros(len(links), dtype=np.uint64)
            member = {axis: _mixed(workers)[index].sum(axis=1) for axis, index in groups.index.items()}
            for sent in sent_in.values():
                sent.colour(group, links)
                np.add.at(crossing, sent.link, _mixed(sent.colours)[sent.message])
                np.add.at(member[sent.axis], sent.group, _mixed(sent.colours + np.uint64(1)))
            links = _again(links, crossing)
            group = {axis: _again(own, member[axis]) for axis, own in group.items()}
            for axis, index in groups.index.items():
                own = np.zeros(len(workers), dtype=np.uint64)
                own[index] = group[axis][:, None]
                workers = _again(workers, own)
            found = [workers, links, *group.values(), *(sent.colours for sent in sent_in.values())]
            before, count = count, sum(len(np.unique(colours)) for colours in found)
            if count == before:
                break
        _, first, which = np.unique(workers, return_index=True, return_inverse=True)
        self.first: Index = first
        self.worker_of: Index = which.reshape(-1)
        _, link, place = np.unique(links, return_index=True, return_inverse=True)
        self.sharing = Sharing(network.capacities[link], names=[network.links[one] for one in link.tolist()])
        self._routes: list[Route] = []
        self._class_of = {
            pattern: sent.classes(link, place.reshape(-1), self._routes) for pattern, sent in sent_in.items()
        }
        self._stands_for = {axis: _firsts(own) for axis, own in group.items()}
        self._of: dict[tuple[str, int], tuple[int, tuple[int, ...]]] = {}

    @property
    def messages(self) -> range:
        """The classes of messages."""
        return range(len(self._routes))

    def group(self, axis: str, of_class: int) -> tuple[int, tuple[int, ...]]:
        """Return one of the groups that stand for those of a class of workers, and the classes that are in it."""
        found = self._of.get((axis, of_class))
        if found is None:
            own = self._groups.of(axis, int(self.first[of_class]))
            number = int(self._stands_for[axis][self._groups.by_axis[axis].index(own)])
            members = self.worker_of[self._groups.index[axis][number]]
            found = self._of[axis, of_class] = number, tuple(dict.fromkeys(members.tolist()))
        return found

    def round(self, axis: str, number: int, transfers: Round) -> Round:
        """Return a round of a group with one message for each class: from and to that class (see :meth:`route`)."""
        pairs = tuple(message[:2] for message in transfers)
        pattern = self._patterns[axis, pairs, number]
        classes = self._class_of[pattern][pattern.groups.index(number)].tolist()
        sizes = dict(zip(classes, (message[2] for message in transfers), strict=True))
        return tuple((one, one, size) for one, size in sizes.items())

    def route(self, source: int, target: int) -> Route:
        """Return the links of a class of messages, each as often as messages of the class cross it."""
        assert source == target
        return self._routes[target]


@dataclass(eq=False)
class _Sent:
    """The messages of a pattern: of which group each is, what is alike in any case, and which links it crosses."""

    axis: str
    group: Index
    alike: Colours
    latency: Floats
    message: Index
    link: Index
    hop: Colours
    colours: Colours

    @classmethod
    def of(cls, pattern: Pattern, number: int, network: Network, groups: Groups) -> _Sent:
        members = [groups.by_axis[pattern.axis][group] for group in pattern.groups]
        routes = [network.route(own[source], own[target]) for own in members for source, target in pattern.pairs]
        lengths = [len(route.links) for route in routes]
        hops = [hop for length in lengths for hop in range(length)]
        latency = np.array([route.latency for route in routes])
        place = np.tile(np.arange(len(pattern.pairs), dtype=np.uint64), len(members))
        alike = _again(_numbered(latency.tolist()), np.zeros_like(place) if pattern.uniform else place)
        alike = _again(alike, np.full_like(place, number))
        return cls(
            pattern.axis,
            np.repeat(np.array(pattern.groups, dtype=np.intp), len(pattern.pairs)),
            alike,
            latency,
            np.repeat(np.arange(len(routes)), lengths),
            np.array([link for route in routes for link in route.links], dtype=np.intp),
            np.array(hops, dtype=np.uint64),
            alike,
        )

    def colour(self, group: Mapping[str, Colours], links: Colours) -> None:
        """Tell messages apart by their groups and links."""
        crossed = np.zeros(len(self.alike), dtype=np.uint64)
        np.add.at(crossed, self.message, _mixed(links[self.link] + _mixed(self.hop)))
        self.colours = _again(_again(self.alike, group[self.axis][self.group]), crossed)

    def classes(self, link: Index, class_of: Index, routes: list[Route]) -> Index:
        """Append the routes of the classes of messages; return the class of each message, shape [groups, messages].

        Args:
            link: one link of each class of links.
            class_of: the class of each link.
        """
        _, first, which = np.unique(self.colours, return_index=True, return_inverse=True)
        which = which.reshape(-1)
        one = np.isin(self.link, link)  # what crosses the links that stand for others
        crossings: list[list[int]] = [[] for _ in first]
        for message, crossed in zip(which[self.message[one]].tolist(), class_of[self.link[one]].tolist(), strict=True):
            crossings[message].append(crossed)
        before = len(routes)
        routes.extend(
            Route(tuple(sorted(found)), float(self.latency[message]))
            for found, message in zip(crossings, first.tolist(), strict=True)
        )
        groups = len(np.unique(self.group))
        return (before + which).reshape(groups, -1)


def _firsts(colours: Colours) -> Index:
    """Return for each colour where it comes first."""
    _, first, which = np.unique(colours, return_index=True, return_inverse=True)
    return first[which.reshape(-1)]


def _numbered(values: Sequence[object]) -> Colours:
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], dtype=np.uint64)


def _mixed(colours: Colours) -> Colours:
    """Scatter numbers over 64 bits (splitmix64: Steele, Lea & Flood 2014), so that sums tell multisets apart."""
    mixed = (colours + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _again(colours: Colours, more: Colours) -> Colours:
    """Tell colours further apart by something else."""
    return _mixed(_mixed(colours) + more)

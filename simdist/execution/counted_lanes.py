"""Lanes of very many messages: counted link by link before, and mostly instead of, looking at them one by one.

Where all messages have one size, counts tell when the last one arrives. The smallest of max-min fair rates is that of
the link with the least capacity per message. It is full of messages that go at this rate until they end, all at once,
whatever others do, and no other message is ever slower: so the last message leaves then. If one with the longest
latency is among them, it is the last to arrive, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from simdist.communication.plans.moves import Column, Turn
from simdist.execution.lanes import Index, Lanes, Spans
from simdist.network.network import Ends, Network
from simdist.network.sharing import Floats

#: messages looked at together: what arrays of them take is bounded
_AT_A_TIME = 2**20


class CountedLanes:
    """:class:`simdist.execution.lanes.Lanes` to the outside: the same seconds, up to rounding.

    Where sizes differ, or counts do not decide, it is the exact lanes that answer.
    """

    def __init__(self, network: Network, groups: Index, source: Column, target: Column) -> None:
        self._network, self._groups = network, groups
        # half as large, as there may be millions
        self._source, self._target = source.astype(np.int32), target.astype(np.int32)
        ends = network.ends
        self._counts = None if ends is None else _Counts.of(network, ends, groups, source, target)

    @cached_property
    def exact(self) -> Lanes:
        """The lanes, message by message."""
        source, target = self._source.astype(np.int64), self._target.astype(np.int64)
        return Lanes(self._network, self._groups, source, target)

    @property
    def held_bytes(self) -> int:
        """The memory that these take, about."""
        own = 0 if self._counts is None else self._counts.crossings.nbytes
        return own + self._source.nbytes + self._target.nbytes + (self.exact.held_bytes if "exact" in vars(self) else 0)

    def mark(self, used: npt.NDArray[np.bool_]) -> None:
        """Mark the links that each group uses; shape [groups, links]."""
        if self._counts is None:
            self.exact.mark(used)
        else:
            used |= self._counts.crossings > 0

    def spans(self, size: Column) -> Spans:
        """Return when the messages of each group, of the given sizes in bytes, have left and arrived."""
        counts = self._counts
        if counts is None or not counts.decide or size.min() != size.max():
            return self.exact.spans(size)
        left = np.full(len(self._groups), float(size[0]) * 8 / counts.rate)
        return Spans(left, left + counts.latency)

    def turned(self, turn: Turn, steps: int) -> Spans:
        """Return the same for each step of sizes that go around; shapes [steps, groups]."""
        if np.all(turn.sizes == turn.sizes[0]) and self._counts is not None and self._counts.decide:
            left, arrived = self.spans(turn.sizes)
            return Spans(np.tile(left, (steps, 1)), np.tile(arrived, (steps, 1)))
        return self.exact.turned(turn, steps)


@dataclass(frozen=True)
class _Counts:
    """What messages put on links.

    Attributes:
        crossings: how many messages of each group cross each link; shape [groups, links].
        rate: bit/s of the slowest messages.
        latency: the longest of each group, s; shape [groups].
        decide: whether each group has a message of its longest latency among the slowest.
    """

    crossings: npt.NDArray[np.int32]
    rate: float
    latency: Floats
    decide: bool

    @classmethod
    def of(cls, network: Network, ends: Ends, groups: Index, source: Column, target: Column) -> _Counts:
        crossings = np.zeros((len(groups), len(network.links)), dtype=np.int32)
        seen: dict[int, _Sample] = {}
        step = max(1, _AT_A_TIME // len(groups))
        for first in range(0, len(source), step):
            one = groups[:, source[first : first + step]]
            other = groups[:, target[first : first + step]]
            group = np.repeat(np.arange(len(groups)), one.shape[1])
            _count(network, ends, group, one.ravel(), other.ravel(), crossings, seen)
        load = crossings.sum(axis=0)
        share = np.divide(network.capacities, load, out=np.full(len(load), np.inf), where=load > 0)
        slowest = share == share.min(initial=np.inf)
        latency = np.zeros(len(groups))
        late = np.zeros(len(groups), dtype=bool)
        for sample in seen.values():
            route, own = network.route(sample.one, sample.other), sample.group
            if route.latency >= latency[own]:
                among = bool(slowest[list(route.links)].any()) if route.links else not load.any()
                late[own] = among or (late[own] and route.latency == latency[own])
                latency[own] = route.latency
        return cls(crossings, float(share.min(initial=np.inf)), latency, bool(late.all()))


class _Sample(NamedTuple):
    """A message of a group, from one worker to another."""

    group: int
    one: int
    other: int


def _count(
    network: Network,
    ends: Ends,
    group: Index,
    one: Index,
    other: Index,
    crossings: npt.NDArray[np.int32],
    seen: dict[int, _Sample],
) -> None:
    """Count some messages; ``seen`` gets one for each group and way between switches."""
    moving = one != other
    group, one, other = group[moving], one[moving], other[moving]
    apart = ends.host[one] != ends.host[other]
    for links, workers in ((ends.up, one), (ends.down, other)):
        own = apart & (links[workers] >= 0)
        np.add.at(crossings, (group[own], links[workers[own]]), 1)
    sites = int(ends.site.max()) + 1
    hosts = int(ends.host.max()) + 1
    # workers of one host exchange over its own link, if over any
    way = np.where(apart, ends.site[one] * sites + ends.site[other], sites * sites + ends.host[one])
    every = group * (sites * sites + hosts) + way
    kinds, first, count = np.unique(every, return_index=True, return_counts=True)
    for kind, at, times in zip(kinds.tolist(), first.tolist(), count.tolist(), strict=True):
        sample = seen.setdefault(kind, _Sample(int(group[at]), int(one[at]), int(other[at])))
        way_between = network.route(sample.one, sample.other).links
        if apart[at]:
            own_up, own_down = int(ends.up[sample.one] >= 0), int(ends.down[sample.other] >= 0)
            way_between = way_between[own_up : len(way_between) - own_down]
        for link in way_between:
            crossings[sample.group, link] += times

"""Lanes that were looked up before: collectives of all sizes take the same ones."""

from __future__ import annotations

import hashlib
from typing import TypeAlias

import numpy as np

from simdist.communication.plans.moves import Column
from simdist.execution.counted_lanes import CountedLanes
from simdist.execution.lanes import Index, Lanes
from simdist.network.network import Network

#: from this many messages on, links are counted first
MANY = 2**10

Laid: TypeAlias = "Lanes | CountedLanes"

_Key: TypeAlias = "tuple[object, ...]"


class LaneBook:
    """Remembers lanes, the oldest of which are forgotten.

    Args:
        network: routes and links, none of which vary.
    """

    #: bytes that remembered lanes may take in all
    _REMEMBERED = 2**29

    def __init__(self, network: Network) -> None:
        self._network = network
        self._known: dict[_Key, Laid] = {}
        #: bytes of each when it was last asked for, and of all
        self._weights: dict[_Key, int] = {}
        self._held = 0
        self._last: _Key = ()

    def lanes(self, groups: Index, source: Column, target: Column) -> Laid:
        """Return the lanes of messages between these members of these groups."""
        key = _key(groups, source, target)
        self._weigh(self._last)  # again, as it may have been looked at more closely since
        found = self._known.get(key)
        if found is None:
            many = len(groups) * len(source) >= MANY
            found = self._known[key] = (CountedLanes if many else Lanes)(self._network, groups, source, target)
            self._weigh(key)
            while self._held > self._REMEMBERED and len(self._known) > 1:
                oldest = next(iter(self._known))
                del self._known[oldest]
                self._held -= self._weights.pop(oldest)
        self._last = key
        return found

    def _weigh(self, key: _Key) -> None:
        if key in self._known:
            weight = self._known[key].held_bytes
            self._held += weight - self._weights.get(key, 0)
            self._weights[key] = weight


def _key(groups: Index, source: Column, target: Column) -> _Key:
    """Return what lanes are remembered by: digests, as millions of messages would make long keys."""
    digests = (hashlib.blake2b(np.ascontiguousarray(column).data).digest() for column in (groups, source, target))
    # two groups of two are not one of four, although the numbers are the same
    return (groups.shape, *digests)

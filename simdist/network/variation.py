"""Bandwidth that varies with simulated time: what share of its capacity each link has when."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import reduce
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import AfterValidator

from simdist.errors import InputError, suggest
from simdist.settings import NaturalInt, PositiveFloat, Settings
from simdist.units import Seconds

if TYPE_CHECKING:
    from simdist.network.sharing import Floats


def _some_time(value: float) -> float:
    if value == 0:
        raise ValueError("got 0 seconds; expected a time above zero")
    return value


#: seconds of which there must be some
Span = Annotated[Seconds, AfterValidator(_some_time)]


class Variation(ABC):
    """Shares of the links' capacities, constant between changes."""

    @abstractmethod
    def factors(self, now: float) -> Floats:
        """Return the share of its capacity (zero or more) that each link has at a time (s, zero or more)."""

    @abstractmethod
    def next_change(self, now: float) -> float:
        """Return the first time after ``now`` at which a factor may change; infinite if none ever does again."""


class Together(Variation):
    """Several variations of the same links: their factors multiply."""

    def __init__(self, parts: Sequence[Variation]) -> None:
        self._parts = tuple(parts)

    def factors(self, now: float) -> Floats:
        first, *others = (part.factors(now) for part in self._parts)
        return reduce(np.multiply, others, first)

    def next_change(self, now: float) -> float:
        return min(part.next_change(now) for part in self._parts)


class Jitter(Settings):
    """Random bandwidth: times a log-normal factor of mean one, drawn anew at regular instants.

    Attributes:
        sigma: standard deviation of the factor's logarithm.
        every: seconds for which a factor holds.
        seed: of the draws; the same seed gives the same bandwidths at the same simulated seconds.
        common: one factor for all links; else each link has its own.
    """

    sigma: PositiveFloat
    every: Span
    seed: NaturalInt = 0
    common: bool = False

    def on(self, links: int) -> Variation:
        """Return the variation of so many links."""
        return _Jittering(self, links)


class _Jittering(Variation):
    def __init__(self, settings: Jitter, links: int) -> None:
        self._settings = settings
        self._links = links

    def factors(self, now: float) -> Floats:
        # A counter-based generator gives any interval at once, in whatever order times are asked for: a step that is
        # priced again sees what it saw. The interval is the counter's second word, the first one counts draws.
        interval = np.random.Philox(key=self._settings.seed, counter=[0, self._interval(now), 0, 0])
        normal = np.random.Generator(interval).standard_normal(1 if self._settings.common else self._links)
        sigma = self._settings.sigma
        return np.broadcast_to(np.exp(sigma * normal - sigma**2 / 2), (self._links,))

    def next_change(self, now: float) -> float:
        return (self._interval(now) + 1) * self._settings.every

    def _interval(self, now: float) -> int:
        return interval_of(now, self._settings.every)


def interval_of(now: float, length: float) -> int:
    """Return the k with k * length <= now < (k + 1) * length, by these very products and not by a rounded quotient."""
    number = math.floor(now / length)
    while number * length > now:
        number -= 1
    while (number + 1) * length <= now:
        number += 1
    return number


class Outage(Settings):
    """A time at which links are down: flows over them wait.

    Attributes:
        start: simulated seconds from the start of the run.
        duration: seconds.
        link: name of the link, or a pattern for several: ``"host0->*"`` (all that leave that host), ``"*"`` (all).
    """

    start: Seconds
    duration: Span
    link: str = "*"


class Outages(Variation):
    """Links that are down at times: factors of zero and one.

    Raises:
        InputError: when an outage names a link that is not there.
    """

    def __init__(self, outages: Sequence[Outage], links: Sequence[str]) -> None:
        self._spans = [
            (outage.start, outage.start + outage.duration, matching(outage.link, links, "network.outages"))
            for outage in outages
        ]
        self._count = len(links)
        self._changes = sorted({time for start, end, _ in self._spans for time in (start, end)})

    def factors(self, now: float) -> Floats:
        factors = np.ones(self._count)
        for start, end, down in self._spans:
            if start <= now < end:
                factors[down] = 0.0
        return factors

    def next_change(self, now: float) -> float:
        place = bisect_right(self._changes, now)
        return self._changes[place] if place < len(self._changes) else math.inf


def matching(pattern: str, links: Sequence[str], where: str) -> list[int]:
    """Return the indices of the links whose name is ``pattern``, or matches it as a file name would.

    Args:
        pattern: a name, or a pattern with ``*`` and ``?``.
        links: names of all links.
        where: what names the link, for the message.

    Raises:
        InputError: when there is no such link.
    """
    found = [index for index, link in enumerate(links) if link == pattern or fnmatchcase(link, pattern)]
    if not found:
        raise InputError(
            f"{where}: got the link {pattern!r}, which this network has not; expected a name such as {links[0]!r} "
            f"or, for several, a pattern with *.{suggest(pattern, links)}"
        )
    return found

"""Max-min fair sharing: who gets how much of each link.

All rates rise together; when a link is full its flows stay at that level and the rest goes on (Bertsekas & Gallager,
Data Networks, 6.5.2). Rates are in bit/s, times in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt

from simdist.errors import RunError
from simdist.network.variation import Variation

Floats: TypeAlias = "npt.NDArray[np.float64]"
Links: TypeAlias = "tuple[int, ...]"

#: Shares this close (relative) are one level of the filling, and flows this close to their end have ended. Far below
#: the 1e-12 that times are held to, far above rounding: symmetric flows end in one event, not in n.
TIE = 1e-13


@dataclass(frozen=True)
class Crossings:
    """Which flows cross which links, as pairs: one for each link that a flow crosses.

    Attributes:
        flows: number of flows.
        used: the links that are crossed.
        flow_of: the flow of each pair.
        link_of: its link, as a place in ``used``.
    """

    flows: int
    used: npt.NDArray[np.intp]
    flow_of: npt.NDArray[np.intp]
    link_of: npt.NDArray[np.intp]

    @classmethod
    def of(cls, routes: Sequence[Links]) -> Crossings:
        lengths = np.fromiter((len(links) for links in routes), dtype=np.intp, count=len(routes))
        crossed = np.array([link for links in routes for link in links], dtype=np.intp)
        # as np.unique does with return_inverse, but by counting and not by sorting: this is the hot path
        used = np.flatnonzero(np.bincount(crossed))
        place = np.zeros(used[-1] + 1 if used.size else 0, dtype=np.intp)
        place[used] = np.arange(used.size)
        return cls(len(routes), used, np.repeat(np.arange(len(routes)), lengths), place[crossed])

    def only(self, staying: npt.NDArray[np.bool_]) -> Crossings:
        """Return what is left when only the marked flows stay; flows keep their numbers."""
        kept = staying[self.flow_of]
        return Crossings(self.flows, self.used, self.flow_of[kept], self.link_of[kept])

    def rates(self, capacities: Floats) -> Floats:
        """Return the max-min fair rate of each flow; infinite for a flow that crosses no link.

        All links that bind are filled at once: those whose equal share of the room is the smallest on the routes of all
        their flows. Nothing can take that share away, so they need not wait for lower levels elsewhere (bottleneck
        structure: Ros-Giralt et al., POMACS 3(3), 2019).
        """
        rates = np.full(self.flows, np.inf)
        flow_of, link_of = self.flow_of, self.link_of
        room = capacities[self.used].astype(np.float64)
        while flow_of.size:
            crowd = np.bincount(link_of, minlength=room.size)
            share = np.full(room.size, np.inf)
            np.divide(room, crowd, out=share, where=crowd > 0)
            if share.max() <= share.min() * (1 + TIE):
                rates[flow_of] = share.min()  # a symmetric round: all links are full together
                break
            level = np.full(self.flows, np.inf)
            np.minimum.at(level, flow_of, share[link_of])
            least = np.full(room.size, np.inf)
            np.minimum.at(least, link_of, level[flow_of])
            full = share <= least * (1 + TIE)
            settled = np.zeros(self.flows, dtype=bool)
            settled[flow_of[full[link_of]]] = True
            rates[settled] = level[settled]
            leaving = settled[flow_of]
            if leaving.all():
                break
            room -= np.bincount(link_of[leaving], weights=rates[flow_of[leaving]], minlength=room.size)
            np.maximum(room, 0.0, out=room)
            flow_of, link_of = flow_of[~leaving], link_of[~leaving]
        return rates


def max_min_rates(routes: Sequence[Links], capacities: Floats) -> Floats:
    """Return the max-min fair rate of each flow (bit/s); infinite for a flow that crosses no link."""
    return Crossings.of(routes).rates(capacities)


class Sharing:
    """Fair rates on links whose capacities may vary with time.

    Rates are remembered per set of routes for as long as the capacities hold: collectives ask for the same sets again.

    Attributes:
        capacities: bit/s of each link where nothing varies.

    Args:
        capacities: as above.
        variation: what share of its capacity each link has when; it may speak of the first links only, the others
            keep all of theirs, always. None: nothing varies.
        names: of the links, for messages.
    """

    _REMEMBERED = 4096

    def __init__(
        self, capacities: Floats, variation: Variation | None = None, names: Sequence[str] | None = None
    ) -> None:
        self.capacities = capacities
        self._variation = variation
        self._names = names
        self._known: dict[tuple[Links, ...], Floats] = {}
        # capacities as they are from _since to just before _until
        self._current = capacities
        self._since = self._until = -math.inf
        if variation is None:
            self._until = math.inf

    @property
    def varies(self) -> bool:
        return self._variation is not None

    def capacities_at(self, now: float) -> Floats:
        """Return the bit/s of each link at a time."""
        if not self._since <= now < self._until:
            assert self._variation is not None
            factors = self._variation.factors(now)
            self._current = self.capacities.copy()
            self._current[: factors.size] *= factors
            self._since, self._until = now, self._variation.next_change(now)
            assert self._until > now
            self._known.clear()
        return self._current

    def next_change(self, now: float) -> float:
        """Return the first time after ``now`` at which a capacity may change; infinite if none ever does again."""
        self.capacities_at(now)
        return self._until

    def rates(self, routes: tuple[Links, ...], now: float = 0.0) -> Floats:
        """Return the rate of each flow in bit/s (see :func:`max_min_rates`) at a time."""
        capacities = self.capacities_at(now)
        known = self._known.get(routes)
        if known is None:
            if len(self._known) >= self._REMEMBERED:
                del self._known[next(iter(self._known))]
            known = self._known[routes] = max_min_rates(routes, capacities)
        return known

    def refuse_standstill(self, links: Links, now: float) -> NoReturn:
        """Raise RunError for a flow over ``links`` that has no rate from ``now`` on, and never will have."""
        capacities = self.capacities_at(now)
        down = next(link for link in links if capacities[link] == 0)
        name = repr(self._names[down]) if self._names else str(down)
        raise RunError(
            f"link {name} is down from {now:.6g} simulated seconds on and never comes up again, with a transfer "
            "still under way over it; expected a bandwidth above zero at some later time"
        )

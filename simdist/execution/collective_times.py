"""Seconds of collectives that nothing else disturbs: round by round, all groups of an axis at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from simdist.execution.course import TOGETHER as TOGETHER
from simdist.execution.course import Course, drained, run_phases
from simdist.execution.lanes import Index
from simdist.execution.planning import Planner
from simdist.execution.segments import segments
from simdist.network.network import Network
from simdist.network.sharing import Floats

_Used: TypeAlias = "npt.NDArray[np.bool_]"


@dataclass(frozen=True, eq=False)
class GroupTimes:
    """How long the groups of an axis take for one collective.

    Attributes:
        seconds: of each group.
        apart: whether no two groups share a link, so that each takes that long whenever it begins; otherwise the times
            hold only if all groups begin together.
        links: of each group, the links that it uses, ascending.
        all_links: the links that any of them uses, ascending.
    """

    seconds: Floats
    apart: bool
    links: tuple[Index, ...]
    all_links: Index

    @classmethod
    def of(cls, seconds: Floats, used: _Used) -> GroupTimes:
        """Build the times of groups that use some links; shapes [groups], [groups, links]."""
        return cls(seconds, _apart(used), tuple(map(np.flatnonzero, used)), np.flatnonzero(used.any(axis=0)))


class CollectiveTimes:
    """Times of collectives, remembered where the network does not change.

    Args:
        network: routes and links between the workers.
        planner: which plan each group takes.
    """

    _REMEMBERED = 16384

    def __init__(self, network: Network, planner: Planner) -> None:
        self._network = network
        self._planner = planner
        self._times: dict[tuple[str, str, int, int], GroupTimes | None] = {}

    @property
    def links(self) -> int:
        """How many links the network has."""
        return len(self._network.links)

    def times(
        self, axis: str, op: str, payload_bytes: int, root: int, starts: Floats, clock: float
    ) -> GroupTimes | None:
        """Return the times of one collective, or None where they have no closed form.

        Args:
            starts: when each group begins, seconds after ``clock``.
            clock: what the network's own clock shows then; matters if its capacities vary.
        """
        if self._network.varies:
            return self._varying(axis, op, payload_bytes, root, starts, clock)
        key = (axis, op, payload_bytes, root)
        if key not in self._times:
            if len(self._times) >= self._REMEMBERED:
                del self._times[next(iter(self._times))]
            self._times[key] = self._fixed(axis, op, payload_bytes, root)
        return self._times[key]

    def _fixed(self, axis: str, op: str, payload_bytes: int, root: int) -> GroupTimes | None:
        groups = self._planner.groups.index[axis]
        plans = self._planner.plans(axis, op, payload_bytes, root)
        used = np.zeros((len(groups), len(self._network.links)), dtype=bool)
        seconds = np.zeros(len(groups))
        together = True
        for plan in dict.fromkeys(plans):
            own = np.array([one == plan for one in plans])
            course, seen, marked = Course(int(own.sum()), plan.in_flight(op)), set[int](), used[own]
            phases = plan.phases(op, payload_bytes, groups.shape[1], root) if groups.shape[1] > 1 else ()
            for lanes in run_phases(phases, self._planner.lanes, groups[own], course):
                if id(lanes) not in seen:  # looked up again for every round
                    seen.add(id(lanes))
                    lanes.mark(marked)
            seconds[own], used[own] = course.over, marked
            together = together and course.together
        found = GroupTimes.of(seconds, used)
        return found if found.apart or (together and len(set(plans)) == 1) else None

    def _varying(
        self, axis: str, op: str, payload_bytes: int, root: int, starts: Floats, clock: float
    ) -> GroupTimes | None:
        """Time a collective from where the network's clock stands; no two segments need take equally long."""
        groups = self._planner.groups.by_axis[axis]
        plans = self._planner.plans(axis, op, payload_bytes, root)
        rounds = [plan.rounds(op, payload_bytes, len(groups[0]), root) for plan in plans]
        used = np.zeros((len(groups), len(self._network.links)), dtype=bool)
        for number, (group, own) in enumerate(zip(groups, rounds, strict=True)):
            for source, target in {message[:2] for transfers, _ in own for message in transfers}:
                used[number, list(self._network.route(group[source], group[target]).links)] = True
        if not _apart(used):
            return None  # their flows meet, and would have to stay together to the bit at every change
        seconds = np.zeros(len(groups))
        for number, (group, own, plan) in enumerate(zip(groups, rounds, plans, strict=True)):
            course = Course(1, plan.in_flight(op))
            for part in segments(own, course.in_flight):
                now = clock + float(starts[number]) + float(course.start()[0])
                course.add(drained(self._network, (group,), part, now))
            seconds[number] = course.over[0]
        return GroupTimes.of(seconds, used)


def _apart(used: _Used) -> bool:
    return bool((used.sum(axis=0) <= 1).all())

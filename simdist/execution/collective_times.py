"""Seconds of collectives that nothing else disturbs: round by round, all groups of an axis at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from simdist.communication.plans import Plan
from simdist.communication.plans.plan import Round, Rounds
from simdist.execution.course import Course, Members, Spans, drained
from simdist.execution.planning import Planner
from simdist.execution.segments import cut, segments
from simdist.network.network import Network
from simdist.network.sharing import Floats

#: Relative difference below which two workers or groups count as simultaneous: rounding, not physics.
TOGETHER = 1e-13


@dataclass(frozen=True)
class GroupTimes:
    """How long the groups of an axis take for one collective.

    Attributes:
        seconds: of each group.
        apart: whether no two groups share a link, so that each takes that long whenever it begins; otherwise the times
            hold only if all groups begin together.
        links: of each group, the links that it uses, ascending.
    """

    seconds: Floats
    apart: bool
    links: tuple[tuple[int, ...], ...]


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
        self._links: dict[tuple[str, str, int, int], tuple[tuple[int, ...], ...]] = {}
        self._known: dict[tuple[Members, Round], Spans] = {}

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

    def _spelled(self, axis: str, op: str, payload_bytes: int, root: int) -> tuple[tuple[Plan, ...], list[Rounds]]:
        plans = self._planner.plans(axis, op, payload_bytes, root)
        members = len(self._planner.groups.by_axis[axis][0])
        by_plan = {plan: plan.rounds(op, payload_bytes, members, root) for plan in dict.fromkeys(plans)}
        return plans, [by_plan[plan] for plan in plans]

    def _fixed(self, axis: str, op: str, payload_bytes: int, root: int) -> GroupTimes | None:
        groups = self._planner.groups.by_axis[axis]
        plans, rounds = self._spelled(axis, op, payload_bytes, root)
        links = self._links_of((axis, op, payload_bytes, root), rounds)
        apart = _apart(links)
        if len(set(plans)) == 1:
            seconds = self._run(groups, rounds[0], plans[0].in_flight(op), apart)
            return None if seconds is None else GroupTimes(seconds, apart, links)
        if not apart:
            return None
        alone = [
            self._run((group,), own, plan.in_flight(op), True)
            for group, own, plan in zip(groups, rounds, plans, strict=True)
        ]
        return GroupTimes(np.concatenate([one for one in alone if one is not None]), apart, links)

    def _run(self, groups: Members, rounds: Rounds, in_flight: int, apart: bool) -> Floats | None:
        """Return the seconds that groups take which begin together; None if they would not stay together."""
        course = Course(len(groups), in_flight)
        for transfers, repeat in rounds:
            parts = [self._segment(groups, part, apart) for part in cut(transfers, in_flight)]
            known = [spans for spans in parts if spans is not None]
            if len(known) < len(parts):
                return None
            course.run(known, repeat)
        return course.over

    def _segment(self, groups: Members, transfers: Round, apart: bool) -> Spans | None:
        """Return when the messages of groups that start together have left and arrived; None if they drift apart."""
        key = (groups, transfers)
        if key not in self._known:
            if len(self._known) >= 256:
                del self._known[next(iter(self._known))]
            self._known[key] = drained(self._network, groups, transfers)
        found = self._known[key]
        return found if apart or (_together(found.left) and _together(found.arrived)) else None

    def _varying(
        self, axis: str, op: str, payload_bytes: int, root: int, starts: Floats, clock: float
    ) -> GroupTimes | None:
        """Time a collective from where the network's clock stands; no two segments need take equally long."""
        groups = self._planner.groups.by_axis[axis]
        plans, rounds = self._spelled(axis, op, payload_bytes, root)
        links = self._links_of((axis, op, payload_bytes, root), rounds)
        if not _apart(links):
            return None  # their flows meet, and would have to stay together to the bit at every change
        seconds = np.zeros(len(groups))
        for number, (group, own, plan) in enumerate(zip(groups, rounds, plans, strict=True)):
            course = Course(1, plan.in_flight(op))
            for part in segments(own, course.in_flight):
                now = clock + float(starts[number]) + float(course.start()[0])
                course.add(drained(self._network, (group,), part, now))
            seconds[number] = course.over[0]
        return GroupTimes(seconds, True, links)

    def _links_of(self, key: tuple[str, str, int, int], rounds: Sequence[Rounds]) -> tuple[tuple[int, ...], ...]:
        """Return the links that each group uses for a collective (axis, op, payload, root)."""
        if key not in self._links:
            if len(self._links) >= self._REMEMBERED:
                del self._links[next(iter(self._links))]
            self._links[key] = tuple(
                tuple(sorted({link for pair in _pairs(own) for link in self._route_links(group, pair)}))
                for group, own in zip(self._planner.groups.by_axis[key[0]], rounds, strict=True)
            )
        return self._links[key]

    def _route_links(self, group: tuple[int, ...], pair: tuple[int, int]) -> tuple[int, ...]:
        return self._network.route(group[pair[0]], group[pair[1]]).links


def _pairs(rounds: Rounds) -> Iterable[tuple[int, int]]:
    return {(source, target) for transfers, _ in rounds for source, target, _ in transfers}


def _apart(links: Sequence[Sequence[int]]) -> bool:
    return len({link for own in links for link in own}) == sum(len(own) for own in links)


def _together(times: Floats) -> bool:
    return bool(times.max() - times.min() <= TOGETHER * times.max())

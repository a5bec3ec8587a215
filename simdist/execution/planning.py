"""Which plan carries out which collective: what ``network.collectives`` names, for these workers on these hosts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from simdist.communication.plans import Collectives, GroupShape, Plan
from simdist.execution.course import Course, run_phases, seconds_alone
from simdist.execution.events import Groups
from simdist.execution.lane_book import LaneBook
from simdist.network.network import Network


class Planner:
    """Chooses plans group by group and remembers the choice.

    Attributes:
        groups: of workers along each axis of the mesh.
        lanes: the routes of whatever was priced.

    Args:
        network: where workers sit: plans may know which of them are near each other.
        mesh: (replicas, shards).
        collectives: a plan, or a profile that chooses one by operation, size and members.
    """

    def __init__(self, network: Network, mesh: tuple[int, int], collectives: Collectives) -> None:
        self.groups = Groups(mesh)
        self.lanes = LaneBook(network)
        self._network = network
        self._collectives = collectives
        self._shapes = {
            axis: tuple(GroupShape(len(group), _renumbered([network.islands[w] for w in group])) for group in groups)
            for axis, groups in self.groups.by_axis.items()
        }
        self._chosen: dict[tuple[str, str, int, int], tuple[Plan, ...]] = {}

    def plans(self, axis: str, op: str, payload_bytes: int, root: int = 0) -> tuple[Plan, ...]:
        """Return the plan of each group of an axis, in the order of the groups."""
        key = (axis, op, payload_bytes, root)
        found = self._chosen.get(key)
        if found is None:
            by_shape: dict[GroupShape, Plan] = {}
            for group, shape in zip(self.groups.by_axis[axis], self._shapes[axis], strict=True):
                if shape not in by_shape:
                    alone = partial(self._seconds_alone, group, op, payload_bytes, root)
                    by_shape[shape] = self._collectives.choose(op, payload_bytes, shape, root, alone)
            found = self._chosen[key] = tuple(by_shape[shape] for shape in self._shapes[axis])
        return found

    def _seconds_alone(self, group: tuple[int, ...], op: str, payload_bytes: int, root: int, plan: Plan) -> float:
        """Return how long a plan takes one group when nothing else is under way."""
        if self._network.varies:
            rounds = plan.rounds(op, payload_bytes, len(group), root)
            return seconds_alone(self._network, group, rounds, plan.in_flight(op))
        course = Course(1, plan.in_flight(op))
        phases = plan.phases(op, payload_bytes, len(group), root) if len(group) > 1 else ()
        for _ in run_phases(phases, self.lanes, np.array([group], dtype=np.intp), course):
            pass
        return float(course.over[0])


def _renumbered(islands: Sequence[int]) -> tuple[int, ...]:
    """Number islands from 0 in the order in which members meet them, so that like groups have like shapes."""
    numbers: dict[int, int] = {}
    return tuple(numbers.setdefault(island, len(numbers)) for island in islands)

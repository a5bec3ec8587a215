"""Profile ``auto``: for each collective the plan that is cheapest on the network at hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from simdist.communication.plans.bidirectional_ring import BidirectionalRing
from simdist.communication.plans.binomial_tree import BinomialTree
from simdist.communication.plans.bruck import Bruck
from simdist.communication.plans.direct import Direct
from simdist.communication.plans.double_binary_tree import DoubleBinaryTree
from simdist.communication.plans.halving_doubling import HalvingDoubling
from simdist.communication.plans.moves import Rounds
from simdist.communication.plans.pairwise import Pairwise
from simdist.communication.plans.parameter_server import ParameterServer
from simdist.communication.plans.plan import Collectives, GroupShape, Plan, check_op, collectives
from simdist.communication.plans.recursive_doubling import RecursiveDoubling
from simdist.communication.plans.ring import Ring
from simdist.communication.plans.scatter_all_gather import ScatterAllGather
from simdist.communication.plans.two_level import TwoLevel

#: in the order that decides between equals
CANDIDATES: tuple[Plan, ...] = (
    Ring(),
    TwoLevel(),
    BidirectionalRing(),
    HalvingDoubling(),
    DoubleBinaryTree(),
    RecursiveDoubling(),
    Bruck(),
    BinomialTree(),
    ScatterAllGather(),
    Pairwise(),
    Direct(),
    ParameterServer(),
)

#: To price n (n - 1) messages that share all links takes minutes on bigger groups; there only ``direct`` has them.
_MOST_AT_ONCE = 64


@collectives.register("auto")
class Auto(Collectives):
    """The cheapest of all plans, under the simulated network, for each operation and size.

    Plans are priced alone on the idle network. The first of equals wins (ring, then two_level, bidirectional_ring,
    halving_doubling, double_binary_tree, recursive_doubling, bruck, binomial_tree, scatter_all_gather, pairwise,
    direct, parameter_server). ``direct`` is left out for groups of more than 64.
    """

    name: ClassVar[str] = "auto"

    def choose(
        self, op: str, payload_bytes: int, group: GroupShape, root: int, seconds: Callable[[Plan], float]
    ) -> Plan:
        check_op(op)
        fitted = [plan.on(group) for plan in CANDIDATES]
        different: dict[Rounds, Plan] = {}
        for plan in fitted:
            if group.members <= _MOST_AT_ONCE or not isinstance(plan, Direct):
                different.setdefault(plan.rounds(op, payload_bytes, group.members, root), plan)
        # min() keeps the first of equals
        return min(different.values(), key=seconds) if len(different) > 1 else fitted[0]

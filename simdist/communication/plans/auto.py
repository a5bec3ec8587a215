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

#: Relative difference below which two plans take equally long: rounding must not choose between them.
_EQUAL = 1e-12
#: Size of groups up to which schedules are compared before they are priced.
_SPELLED = 64
#: Size of groups up to which a plan is priced, where that takes minutes on bigger ones: n (n - 1) messages that share
#: all links at once; n - 1 rounds over other routes each; n - 1 unlike rounds in which all messages share links.
_MOST: dict[str, int] = {Direct.name: 64, Pairwise.name: 512, BidirectionalRing.name: 512}


@collectives.register("auto")
class Auto(Collectives):
    """The cheapest of all plans, under the simulated network, for each operation and size.

    Plans are priced alone on the idle network. The first of equals wins (ring, then two_level, bidirectional_ring,
    halving_doubling, double_binary_tree, recursive_doubling, bruck, binomial_tree, scatter_all_gather, pairwise,
    direct, parameter_server). ``direct`` is left out for groups of more than 64, ``pairwise`` and
    ``bidirectional_ring`` of more than 512: to price them takes too long.
    """

    name: ClassVar[str] = "auto"

    def choose(
        self, op: str, payload_bytes: int, group: GroupShape, root: int, seconds: Callable[[Plan], float]
    ) -> Plan:
        check_op(op)
        fitted = [plan.on(group) for plan in CANDIDATES]
        different: dict[Rounds | Plan, Plan] = {}
        for plan in fitted:
            if group.members <= _MOST.get(plan.name, group.members):
                # which schedules are equal is worth knowing only where it takes no longer than their prices
                small = group.members <= _SPELLED
                key = plan.rounds(op, payload_bytes, group.members, root) if small else plan
                different.setdefault(key, plan)
        if len(different) == 1:
            return fitted[0]
        cost = {plan: seconds(plan) for plan in different.values()}
        least = min(cost.values())
        return next(plan for plan, found in cost.items() if found <= least * (1 + _EQUAL))

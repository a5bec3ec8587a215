"""Every plan there is, for any number of members: the laws run over this list. A registered plan is in it by itself."""

from __future__ import annotations

from collections.abc import Callable

from simdist.communication.plans import DoubleBinaryTree, GroupShape, Plan, TwoLevel, collectives, collectives_named
from simdist.communication.plans.gloo import GlooPair, GlooRing, GlooTree

REGISTERED = [name for name, kind in collectives.items() if issubclass(kind, Plan)]


def plan_named(name: str) -> Plan:
    """Return one plan, which is not what a profile is."""
    found = collectives_named(name)
    assert isinstance(found, Plan)
    return found


def _as_it_is(plan: Plan) -> Callable[[int], Plan]:
    return lambda members: plan


def _islands_of_three(members: int) -> tuple[int, ...]:
    """Islands of three next to each other, the last one with what is left."""
    return tuple(member // 3 for member in range(members))


def _uneven(members: int) -> tuple[int, ...]:
    """Three islands of different sizes, in no order."""
    return tuple((0, 1, 0, 2, 0, 1, 0)[member % 7] for member in range(members))


PLANS: dict[str, Callable[[int], Plan]] = {
    **{name: _as_it_is(plan_named(name)) for name in REGISTERED},
    "gloo_ring": _as_it_is(GlooRing()),
    "gloo_tree": _as_it_is(GlooTree()),
    "gloo_pair": _as_it_is(GlooPair()),
    "double_binary_tree in pieces": _as_it_is(DoubleBinaryTree(chunk=16)),
    "double_binary_tree on islands": lambda n: DoubleBinaryTree(chunk=16).on(GroupShape(n, _islands_of_three(n))),
    "two_level on islands": lambda n: TwoLevel().on(GroupShape(n, _islands_of_three(n))),
    "two_level on uneven islands": lambda n: TwoLevel().on(GroupShape(n, _uneven(n))),
}

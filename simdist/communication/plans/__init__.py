"""Collective plans by name; importing this package registers them all."""

from simdist.communication.plans.direct import Direct
from simdist.communication.plans.plan import Plan, Round, Rounds, chunk_sizes, plans
from simdist.communication.plans.ring import Ring

__all__ = ["Direct", "Plan", "Ring", "Round", "Rounds", "chunk_sizes", "collectives_plan", "plans"]


def collectives_plan(name: str) -> Plan:
    """Return the plan that ``network.collectives`` names.

    Raises:
        InputError: for an unknown name.
    """
    return plans.get(name)()

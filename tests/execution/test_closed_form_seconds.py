"""Seconds of an all-reduce by every plan on a symmetric network: closed forms to 1e-12. A new plan joins by one line.

On a star a message of S bytes that shares its links with nobody takes 2 L + 8 S / B, with L and B of each link.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log2

import pytest

from simdist.communication.plans import Plan, collectives, collectives_named
from simdist.communication.trace import CollectiveOp
from simdist.execution.compute_model import ComputeModel
from simdist.execution.pricing import StepPricer
from simdist.network import Star

L, B = 3e-4, 1e8


#: plan to (n) -> (rounds, share of the payload that the busiest links carry, summed over the rounds)
FORMS: dict[str, Callable[[int], tuple[float, float]]] = {
    "ring": lambda n: (2 * (n - 1), 2 * (n - 1) / n),
    "bidirectional_ring": lambda n: (2 * (n - 1), 2 * (n - 1) / n),
    "scatter_all_gather": lambda n: (2 * (n - 1), 2 * (n - 1) / n),
    "pairwise": lambda n: (2 * (n - 1), 2 * (n - 1) / n),
    # every host of a star is an island of its own
    "two_level": lambda n: (2 * (n - 1), 2 * (n - 1) / n),
    "halving_doubling": lambda n: (2 * log2(n), 2 * (n - 1) / n),
    "bruck": lambda n: (2 * log2(n), 2 * (n - 1) / n),
    "recursive_doubling": lambda n: (log2(n), log2(n)),
    "binomial_tree": lambda n: (2 * log2(n), 2 * log2(n)),
    "direct": lambda n: (2, 2 * (n - 1) / n),
    "parameter_server": lambda n: (2, 2 * (n - 1)),
    # in one piece, members 4: up (two halves into one host), up, down, down (two halves out of one)
    "double_binary_tree(chunk=1MiB)": lambda n: {2: (2, 1.0), 4: (4, 3.0)}[n],
}


def test_every_plan_has_a_form() -> None:
    plans = {name for name, kind in collectives.items() if issubclass(kind, Plan)}
    assert {name.partition("(")[0] for name in FORMS} == plans


@pytest.mark.parametrize("exact", [False, True], ids=["closed", "replayed"])
@pytest.mark.parametrize(
    ("name", "members"),
    # the pipelined trees by hand for two and four members only
    [(name, members) for name in FORMS for members in (2, 4, 8) if members < 8 or not name.startswith("double")],
)
def test_an_all_reduce_takes_its_closed_form(name: str, members: int, exact: bool) -> None:
    size = members * 12_000
    rounds, share = FORMS[name](members)
    network, compute = Star(bandwidth=B, latency=L).network(members), ComputeModel.of_speeds([1e12] * members)
    pricer = StepPricer(network, (1, members), collectives_named(name), compute, exact=exact)
    step = ((CollectiveOp("all_reduce", "shards", "optimizer", "w", "fp32", size),),)
    assert pricer.price(step).duration == pytest.approx(rounds * 2 * L + share * 8 * size / B, rel=1e-12)

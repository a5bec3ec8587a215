"""Plans: who sends how many bytes to whom in which round of a collective. No values, no seconds.

A plan says which bytes of a payload S (see :mod:`simdist.communication.trace`) move in which step; pricing those moves
gives rounds of messages. Rounds are barriers within their group: a round starts when every message of the one before
has arrived. What ``network.collectives`` names is either one plan or a profile, which chooses a plan per collective.

Source of the byte formulas: card 0 of the algorithm cards; Thakur, Rabenseifner & Gropp 2005.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import lru_cache
from itertools import chain, groupby
from operator import itemgetter
from typing import ClassVar, NamedTuple

from simdist.communication.plans.moves import Phase
from simdist.communication.plans.moves import Round as Round
from simdist.communication.plans.moves import Rounds as Rounds
from simdist.registry import Registry
from simdist.settings import Settings

#: The collectives that every plan spells out.
OPS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast")


class GroupShape(NamedTuple):
    """What a choice of plan may depend on.

    Attributes:
        members: size of the group.
        islands: per member the number of its island, workers that are close to each other (all 0: flat).
    """

    members: int
    islands: tuple[int, ...]

    @classmethod
    def flat(cls, members: int) -> GroupShape:
        """Return the shape of a group without islands."""
        return cls(members, (0,) * members)


class Collectives(Settings, ABC):
    """How groups carry out their collectives: one plan for all, or a profile. Fields are its settings.

    Attributes:
        name: what ``network.collectives`` calls it.
    """

    name: ClassVar[str]

    @abstractmethod
    def choose(
        self, op: str, payload_bytes: int, group: GroupShape, root: int, seconds: Callable[[Plan], float]
    ) -> Plan:
        """Return the plan for one collective; ``seconds`` prices a candidate on the network at hand."""


class Plan(Collectives):
    """How the members of a group carry out a collective. Plans have no state.

    Attributes:
        name: what the ledger's ``plan`` column says.
    """

    @abstractmethod
    def phases(self, op: str, payload_bytes: int, members: int, root: int) -> tuple[Phase, ...]:
        """Return which bytes move in which step, for two members or more."""

    @abstractmethod
    def sent(self, op: str, payload_bytes: int, members: int, root: int = 0) -> tuple[int, ...]:
        """Return the bytes that each member sends, in closed form."""

    def rounds(self, op: str, payload_bytes: int, members: int, root: int = 0) -> Rounds:
        """Return the rounds of messages, runs of identical rounds counted instead of repeated.

        A group of one needs no rounds. Messages of zero bytes (payloads smaller than the group) stay in the
        schedule: they cost latency.
        """
        # Unequal chunks on big groups make millions of messages: too many to keep.
        spell = _rounds if members <= 64 else _rounds.__wrapped__
        return spell(self, op, payload_bytes, members, root)

    def in_flight(self, op: str) -> int:
        """Return how many segments of a round the library keeps under way (1: rounds are barriers).

        With several, a round is cut into so many segments, and their latencies overlap.
        """
        return 1

    def total_sent(self, op: str, payload_bytes: int, members: int, root: int = 0) -> int:
        """Return the bytes that the whole group sends."""
        return sum(self.sent(op, payload_bytes, members, root))

    def choose(
        self, op: str, payload_bytes: int, group: GroupShape, root: int, seconds: Callable[[Plan], float]
    ) -> Plan:
        return self.on(group)

    def on(self, group: GroupShape) -> Plan:
        """Return the plan fitted to a group's islands; most plans do not know them."""
        return self


collectives: Registry[type[Collectives]] = Registry("collectives")


def check_op(op: str) -> None:
    """Refuse an operation outside :data:`OPS`; requests are a closed list, so this is our own mistake."""
    assert op in OPS, f"got the collective {op!r}; expected one of {', '.join(OPS)}"


@lru_cache(maxsize=256)
def _rounds(plan: Plan, op: str, payload_bytes: int, members: int, root: int) -> Rounds:
    check_op(op)
    assert payload_bytes >= 0
    assert 0 <= root < members
    if members == 1:
        return ()
    phases = plan.phases(op, payload_bytes, members, root)
    runs = groupby(chain.from_iterable(phase.rounds() for phase in phases), key=itemgetter(0))
    return tuple((a_round, sum(repeat for _, repeat in run)) for a_round, run in runs)

"""Plans: who sends how many bytes to whom in which round of a collective. No values, no seconds.

A payload S (see :mod:`simdist.communication.trace`) is cut into n chunks, one per member, whose sizes differ by at
most one byte. A plan says which chunks move in which step; pricing those chunks gives rounds of bytes. Rounds are
barriers within their group: a round starts when every transfer of the one before has arrived.

Source of the byte formulas: card 0 of the algorithm cards; Thakur, Rabenseifner & Gropp 2005.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import ClassVar, NamedTuple, TypeAlias

from simdist.registry import Registry

#: The collectives that every plan spells out.
OPS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast")

#: One round: (source member, target member, bytes) of each transfer, all starting together.
Round: TypeAlias = "tuple[tuple[int, int, int], ...]"
#: A schedule: each round with the number of times in a row that it is run.
Rounds: TypeAlias = "tuple[tuple[Round, int], ...]"


class Move(NamedTuple):
    """Chunks that one member sends another within one step.

    What chunk c means depends on the operation: member c's shard (all_gather), the sender's partial sum of what
    member c will own (reduce_scatter), the sender's part for member c (all_to_all), the c-th piece of the root's
    message (broadcast).
    """

    source: int
    target: int
    chunks: tuple[int, ...]


@dataclass(frozen=True)
class Phase:
    """A run of steps with one pattern.

    Attributes:
        kind: what the receiver does: ``reduce`` adds, ``copy`` keeps, ``exchange`` files by sender.
        steps: number of steps.
        moves: step number to the moves of that step.
        alike: with equal chunks all steps move the same bytes, so one round stands for all.
    """

    kind: str
    steps: int
    moves: Callable[[int], tuple[Move, ...]]
    alike: bool


def chunk_sizes(payload_bytes: int, members: int) -> tuple[int, ...]:
    """Cut a payload into one chunk per member; the first ``payload_bytes % members`` are one byte longer.

    >>> chunk_sizes(10, 4)
    (3, 3, 2, 2)
    """
    whole, rest = divmod(payload_bytes, members)
    return (whole + 1,) * rest + (whole,) * (members - rest)


class Plan(ABC):
    """How the members of a group carry out a collective. Plans have no state.

    Attributes:
        name: what the ledger's ``plan`` column says.
    """

    name: ClassVar[str]

    @abstractmethod
    def phases(self, op: str, members: int, root: int) -> tuple[Phase, ...]:
        """Return which chunks move in which step, for two members or more; the payload's size plays no part."""

    @abstractmethod
    def sent(self, op: str, payload_bytes: int, members: int, root: int = 0) -> tuple[int, ...]:
        """Return the bytes that each member sends, in closed form."""

    def rounds(self, op: str, payload_bytes: int, members: int, root: int = 0) -> Rounds:
        """Return the rounds of bytes, runs of identical rounds counted instead of repeated.

        A group of one needs no rounds. Transfers of zero bytes (payloads smaller than the group) stay in the
        schedule: they are messages and cost latency.
        """
        # Unequal chunks on big groups make millions of transfers: too many to keep.
        spell = _rounds if members <= 64 else _rounds.__wrapped__
        return spell(self, op, payload_bytes, members, root)

    def total_sent(self, op: str, payload_bytes: int, members: int, root: int = 0) -> int:
        """Return the bytes that the whole group sends."""
        return sum(self.sent(op, payload_bytes, members, root))


plans: Registry[type[Plan]] = Registry("collective plan")


def check_op(op: str) -> None:
    """Refuse an operation outside :data:`OPS`; requests are a closed list, so this is our own mistake."""
    assert op in OPS, f"got the collective {op!r}; expected one of {', '.join(OPS)}"


@lru_cache(maxsize=64)
def _rounds(plan: Plan, op: str, payload_bytes: int, members: int, root: int) -> Rounds:
    check_op(op)
    assert payload_bytes >= 0
    assert 0 <= root < members
    if members == 1:
        return ()
    sizes = chunk_sizes(payload_bytes, members)
    equal = sizes[0] == sizes[-1]
    spelled: list[tuple[Round, int]] = []
    for phase in plan.phases(op, members, root):
        if phase.alike and equal:
            spelled.append((_priced(phase.moves(0), sizes), phase.steps))
        else:
            spelled.extend((_priced(phase.moves(step), sizes), 1) for step in range(phase.steps))
    return _merged(spelled)


def _priced(moves: Iterable[Move], sizes: tuple[int, ...]) -> Round:
    return tuple((move.source, move.target, sum(sizes[chunk] for chunk in move.chunks)) for move in moves)


def _merged(spelled: Iterable[tuple[Round, int]]) -> Rounds:
    runs = groupby(spelled, key=lambda entry: entry[0])
    return tuple((a_round, sum(repeat for _, repeat in run)) for a_round, run in runs)

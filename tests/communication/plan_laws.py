"""The judge of collective plans: runs their moves on symbols, and says what a collective promises.

It knows nothing of any plan. What a member holds is, per atom of the address space (a stretch that no move cuts), the
set of members whose contributions are in it, as bits.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from simdist.communication.plans.moves import Moves, Phase, cuts
from simdist.communication.plans.plan import Rounds

Held = npt.NDArray[np.uint64]

#: operations whose members contribute to the same bytes
SUMS = ("all_reduce", "reduce_scatter")


class Broken(AssertionError):
    """A schedule that cannot be, or does not deliver."""


class Ledger:
    """What every member of a group holds, atom by atom: ``held[member, atom]``."""

    def __init__(self, op: str, payload: int, members: int, root: int, steps: Iterable[Moves]) -> None:
        self.op, self.payload, self.members, self.root = op, payload, members, root
        self.cut = cuts(payload, members)
        places = [np.arange(members) * payload + part for part in self.cut] if op == "all_to_all" else [self.cut]
        places += [column for moves in steps for column in (moves.start, moves.stop)]
        self.edges = np.unique(np.concatenate(places))
        self.held: Held = np.zeros((members, max(len(self.edges) - 1, 0)), dtype=np.uint64)
        for member in range(members):
            self.held[member, self.atoms(*self._given(member))] = _bit(member)

    def atoms(self, start: int, stop: int) -> slice:
        return slice(*np.searchsorted(self.edges, (start, stop)).tolist())

    def _given(self, member: int) -> tuple[int, int]:
        """What a member has at the beginning."""
        if self.op == "all_gather":
            return int(self.cut[member]), int(self.cut[member + 1])
        if self.op == "all_to_all":
            return member * self.payload, (member + 1) * self.payload
        return 0, self.payload if self.op in SUMS or member == self.root else 0

    def step(self, moves: Moves) -> None:
        """Carry out one step: all moves leave before any arrives."""
        before = self.held.copy()
        adds = np.broadcast_to(moves.adds, moves.source.shape)
        for source, target, start, stop, add in zip(*(c.tolist() for c in (*moves[:4], adds)), strict=True):
            atoms = self.atoms(start, stop)
            content = before[source, atoms]
            if source == target:
                raise Broken(f"member {source} sends to itself")
            if not 0 <= start <= stop <= self.payload * (self.members if self.op == "all_to_all" else 1):
                raise Broken(f"bytes {start} to {stop} do not exist")
            if (content == 0).any():
                raise Broken(f"member {source} sends bytes {start} to {stop}, which it does not hold")
            if add and (self.held[target, atoms] & content).any():
                raise Broken(f"member {target} adds a contribution twice")
            self.held[target, atoms] = self.held[target, atoms] | content if add else content

    def check(self) -> None:
        """Refuse a group of which a member does not hold what the collective promised it."""
        everyone = np.bitwise_or.reduce(np.array([_bit(member) for member in range(self.members)]))
        for member in range(self.members):
            if self.op == "all_to_all":
                wanted = [
                    (origin * self.payload + int(self.cut[member]), origin * self.payload + int(self.cut[member + 1]))
                    for origin in range(self.members)
                ]
                contents = [_bit(origin) for origin in range(self.members)]
            elif self.op == "all_gather":
                wanted = [(int(self.cut[c]), int(self.cut[c + 1])) for c in range(self.members)]
                contents = [_bit(c) for c in range(self.members)]
            elif self.op == "reduce_scatter":
                wanted, contents = [(int(self.cut[member]), int(self.cut[member + 1]))], [everyone]
            else:
                wanted = [(0, self.payload)]
                contents = [everyone if self.op == "all_reduce" else _bit(self.root)]
            for (start, stop), content in zip(wanted, contents, strict=True):
                if (self.held[member, self.atoms(start, stop)] != content).any():
                    raise Broken(f"member {member} does not end with bytes {start} to {stop} of this {self.op}")


def deliver(op: str, payload: int, members: int, root: int, phases: Iterable[Phase]) -> None:
    """Run a schedule on symbols.

    Raises:
        Broken: when somebody sends what it does not hold, adds something twice, or does not end with what was promised.
    """
    steps = [phase.moves(step) for phase in phases for step in range(phase.steps)]
    ledger = Ledger(op, payload, members, root, steps)
    for moves in steps:
        ledger.step(moves)
    ledger.check()


def sent_and_received(rounds: Rounds, members: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Add up a schedule's messages per member."""
    sent, received = [0] * members, [0] * members
    for messages, repeat in rounds:
        assert repeat >= 1
        for source, target, size in messages:
            assert size >= 0
            assert source != target
            sent[source] += repeat * size
            received[target] += repeat * size
    return tuple(sent), tuple(received)


def least_total(op: str, payload: int, members: int) -> int:
    """The bytes that any schedule sends at least (card 0): every member must get, or give away, what it lacks."""
    return (2 if op == "all_reduce" else 1) * (members - 1) * payload


def _bit(member: int) -> np.uint64:
    return np.uint64(1 << member)

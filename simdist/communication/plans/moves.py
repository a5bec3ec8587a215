"""Moves: which bytes of a collective go from whom to whom in one step, by columns, and runs of such steps.

A collective's bytes have addresses. Those of an all-reduce, all-gather, reduce-scatter or broadcast of a payload S are
0 to S; member c owns chunk c (:func:`cuts`). In an all-to-all every member has a buffer of its own: byte x of member
i's is at i S + x, and chunk c of each buffer is for member c. So any schedule can be checked to deliver, however it
cuts the payload.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

#: whole numbers, one per move, chunk or member
Column: TypeAlias = "npt.NDArray[np.int64]"
Flags: TypeAlias = "npt.NDArray[np.bool_]"

#: One round: (source member, target member, bytes) of each message, all starting together.
Round: TypeAlias = "tuple[tuple[int, int, int], ...]"
#: A schedule: each round with the number of times in a row that it is run.
Rounds: TypeAlias = "tuple[tuple[Round, int], ...]"


class Moves(NamedTuple):
    """The moves of one step: member ``source`` sends member ``target`` the bytes from ``start`` to before ``stop``.

    The target adds what comes in to what it holds at these addresses, or keeps it in its place. Moves one after
    another between the same two members make one message.
    """

    source: Column
    target: Column
    start: Column
    stop: Column
    adds: Flags | bool = False

    def where(self, kept: Flags) -> Moves:
        """Return some of the moves."""
        adds = self.adds if isinstance(self.adds, bool) else self.adds[kept]
        return Moves(self.source[kept], self.target[kept], self.start[kept], self.stop[kept], adds)

    def messages(self) -> tuple[Column, Column, Column]:
        """Return the sources, targets and bytes of the messages."""
        source, target, size = self.source, self.target, self.stop - self.start
        same = (source[1:] == source[:-1]) & (target[1:] == target[:-1])
        if not same.any():
            return source, target, size
        first = np.flatnonzero(np.concatenate(([True], ~same)))
        return source[first], target[first], np.add.reduceat(size, first)


class Turn(NamedTuple):
    """Sizes that go around: in step s message i has ``sizes[(i - hop (s + late)) % n]`` bytes.

    ``sizes`` has one entry per message, n in all; who sends to whom is the same in every step.
    """

    sizes: Column
    hop: int
    late: int


@dataclass(frozen=True)
class Phase:
    """A run of steps with one pattern.

    Attributes:
        steps: number of steps.
        moves: step number to the moves of that step.
        alike: all steps send the same messages, so that one round stands for all.
        turn: how sizes go around from step to step, where they do: told so that a thousand steps need not be priced one
            by one. It says nothing that ``moves`` does not say.
    """

    steps: int
    moves: Callable[[int], Moves]
    alike: bool = False
    turn: Turn | None = None

    def rounds(self) -> Iterator[tuple[Round, int]]:
        """Spell the steps as rounds, each with the number of times that it is run."""
        speller = _Speller()
        if self.alike and self.steps:
            yield speller.spell(self.moves(0)), self.steps
        else:
            yield from ((speller.spell(self.moves(step)), 1) for step in range(self.steps))

    def mirrored(self) -> Phase:
        """Return the phase run backwards: copies become sums (a gather a scatter, a broadcast a reduction, and so on).

        Holds for phases that bring each byte to each member at most once.
        """

        def moves(step: int) -> Moves:
            source, target, start, stop, adds = self.moves(self.steps - 1 - step)
            return Moves(target, source, start, stop, not adds if isinstance(adds, bool) else ~adds)

        return Phase(self.steps, moves, self.alike)


def cuts(payload_bytes: int, parts: int) -> Column:
    """Return the ``parts + 1`` places where a payload is cut: chunk c lies between cut c and cut c + 1.

    The first ``payload_bytes % parts`` chunks are one byte longer.

    >>> cuts(10, 4).tolist()
    [0, 3, 6, 8, 10]
    """
    whole, rest = divmod(payload_bytes, parts)
    index = np.arange(parts + 1)
    return index * whole + np.minimum(index, rest)


def chunk_sizes(payload_bytes: int, members: int) -> tuple[int, ...]:
    """Return the bytes of each member's chunk; they differ by one at most.

    >>> chunk_sizes(10, 4)
    (3, 3, 2, 2)
    """
    whole, rest = divmod(payload_bytes, members)
    return (whole + 1,) * rest + (whole,) * (members - rest)


class _Speller:
    """Writes steps as rounds, without making the same message twice while sources and targets stay the same.

    A ring of a thousand members whose payload does not divide has millions of messages, but two per member.
    """

    _FEW_SIZES = 8

    def __init__(self) -> None:
        self._between: tuple[Column, Column] | None = None
        self._by_size: dict[int, npt.NDArray[np.object_]] = {}

    def spell(self, moves: Moves) -> Round:
        source, target, size = moves.messages()
        between, self._between = self._between, (source, target)
        if between is None or source is not between[0] or target is not between[1]:
            self._by_size = {}
            return tuple(zip(source.tolist(), target.tolist(), size.tolist(), strict=True))
        sizes = np.unique(size).tolist()
        if len(sizes) > self._FEW_SIZES:
            return tuple(zip(source.tolist(), target.tolist(), size.tolist(), strict=True))
        spelled = np.empty(len(size), dtype=object)
        for one in sizes:
            if one not in self._by_size:
                messages = zip(source.tolist(), target.tolist(), repeat(one))
                self._by_size[one] = np.fromiter(messages, dtype=object, count=len(size))
            np.copyto(spelled, self._by_size[one], where=size == one)
        return tuple(spelled.tolist())

"""The messages of one collective of one group, in the order in which they may start.

Plans speak of rounds. Where a library keeps several segments of a round under way (gloo two, NCCL more), each round is
cut into that many, and a segment may start when the one before has left and the one ``in_flight`` before has arrived:
latency is then hidden behind the other segments. With one in flight, rounds are barriers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from simdist.communication.plans.plan import Round, Rounds


def cut(transfers: Round, in_flight: int) -> tuple[Round, ...]:
    """Cut a round into segments whose sizes differ by at most one byte per message.

    >>> cut(((0, 1, 5), (1, 0, 4)), 2)
    (((0, 1, 3), (1, 0, 2)), ((0, 1, 2), (1, 0, 2)))
    """
    if in_flight == 1:
        return (transfers,)
    return tuple(
        tuple((source, target, size // in_flight + (part < size % in_flight)) for source, target, size in transfers)
        for part in range(in_flight)
    )


def segments(rounds: Rounds, in_flight: int) -> Iterator[Round]:
    """Yield all segments of a schedule, in order."""
    for transfers, repeat in rounds:
        parts = cut(transfers, in_flight)
        for _ in range(repeat):
            yield from parts


class Segments:
    """Which segment may start now, told as messages leave and arrive.

    Attributes:
        in_flight: how many may be under way.
    """

    def __init__(self, rounds: Rounds, in_flight: int) -> None:
        self.in_flight = in_flight
        self._coming = segments(rounds, in_flight)
        self._next = next(self._coming, None)
        #: messages of the segment started last that have not left their sender's links yet
        self._leaving = 0
        #: of each segment under way, oldest first, the messages that have not arrived
        self._under_way: deque[int] = deque()
        #: number of the oldest of them
        self._oldest = 0

    def start(self) -> tuple[int, Round] | None:
        """Return number and messages of a segment that is to start now, or None while none may."""
        if self._next is None or self._leaving or len(self._under_way) >= self.in_flight:
            return None
        started, self._next = self._next, next(self._coming, None)
        self._leaving = len(started)
        self._under_way.append(len(started))
        number = self._oldest + len(self._under_way) - 1
        self._forget_arrived()
        return number, started

    def left(self) -> None:
        """Note that a message of the segment started last has left."""
        self._leaving -= 1

    def arrived(self, number: int) -> None:
        """Note that a message of segment ``number`` has arrived."""
        self._under_way[number - self._oldest] -= 1
        self._forget_arrived()

    @property
    def over(self) -> bool:
        """Whether everything has arrived."""
        return self._next is None and not self._under_way

    def _forget_arrived(self) -> None:
        while self._under_way and self._under_way[0] == 0:
            self._under_way.popleft()
            self._oldest += 1

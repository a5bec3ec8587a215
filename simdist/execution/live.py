"""The event-driven engine: irregular programs, whose workers talk at different times, in simulated-time order.

The loop of SimPy and SimGrid: run every worker that is awake until it asks for something, hand the descriptors to the
virtual clock, move the clock to the next instant at which a worker can go on, and give that worker its answers.
Real completion order never enters, so results are the same in one process and on any number of Ray actors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from simdist.communication.ledger import Entry, Ledger
from simdist.communication.trace import CollectiveOp, SendOp
from simdist.errors import DeadlockError
from simdist.execution.events import DIAGNOSTIC, Event, Place
from simdist.execution.live_block import Delivery, LiveHosts, Mail, Meeting
from simdist.execution.timeline import Timeline


@dataclass(frozen=True)
class Noted:
    """A row that a worker noted, and the simulated second at which it did."""

    worker: int
    seconds: float
    row: dict[str, Any]


@dataclass(frozen=True)
class Booked:
    """A ledger entry, and when it began and ended."""

    entry: Entry
    start: float
    end: float


class LiveRun:
    """Drives one irregular program to its end.

    Args:
        hold: called with the simulated time after every move of the clock; a paced run waits here.
    """

    def __init__(
        self, hosts: LiveHosts, timeline: Timeline, ledger: Ledger, hold: Callable[[float], None] | None = None
    ) -> None:
        self._hosts = hosts
        self._timeline = timeline
        self._ledger = ledger
        self._hold = hold
        self._parcels: dict[Place, Any] = {}
        self._seen = 0
        self.params: dict[str, Tensor] | None = None

    def run(self, workers: Sequence[int], tell: Callable[[Sequence[Booked], Sequence[Noted]], None]) -> None:
        """Run all workers to the end; ``tell`` hears of transfers and noted rows as time goes on.

        Raises:
            DeadlockError: when workers wait for each other for ever.
        """
        awake: dict[int, tuple[Delivery, ...] | None] = dict.fromkeys(workers)
        while awake:
            noted = []
            for asked in self._hosts.resume(awake):
                now = self._timeline.clock(asked.worker)
                noted += [Noted(asked.worker, now, row) for row in asked.observed]
                if asked.params is not None:
                    self.params = asked.params
                if asked.ops is not None:
                    wave = self._timeline.submit(asked.worker, asked.ops)
                    for item, parcel in enumerate(asked.parcels):
                        if parcel is not None:
                            self._parcels[Place(asked.worker, wave, item)] = parcel
            tell((), noted)
            try:
                woken = self._timeline.advance()
            except DeadlockError:
                tell(self._book(), ())  # what has been delivered until then is part of the record
                raise
            if self._hold is not None:
                self._hold(self._timeline.now)
            tell(self._book(), ())
            # a collective's parcels are needed by every member that wakes, so they are dropped after all are served
            served: set[Place] = set()
            awake = {w.worker: tuple(self._delivery(answer, served) for answer in w.answers) for w in woken}
            for place in served:
                del self._parcels[place]

    def _book(self) -> list[Booked]:
        """Return ledger entries for everything that ended since the last call."""
        fresh = self._timeline.events[self._seen :]
        self._seen = len(self._timeline.events)
        booked = []
        for event in fresh:
            entry = self._entry(event)
            if entry is not None:
                booked.append(Booked(entry, event.start, event.end))
        return booked

    def _entry(self, event: Event) -> Entry | None:
        op = event.op
        if isinstance(op, CollectiveOp):
            if op.purpose == DIAGNOSTIC:
                return None
            assert event.plan is not None
            return self._ledger.entry(op, [event.plan])
        return Ledger.message(op) if isinstance(op, SendOp) else None

    def _delivery(self, answer: int | Place | None, served: set[Place]) -> Delivery:
        if isinstance(answer, Place):
            served.add(answer)
            return Mail(answer.worker, self._parcels[answer])
        if answer is None:
            return None
        event = self._timeline.events[answer]
        if event.kind != "collective":
            return None
        served.update(event.places)
        return Meeting(answer, tuple(self._parcels[place] for place in event.places), event.members)

"""Driving an irregular run: values, bytes and seconds together, event by event."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from simdist.assembly import build_hosts, build_timeline, paced
from simdist.execution.live import Booked, LiveRun, Noted
from simdist.recovering import recovering
from simdist.results.perfetto import STEPS as DRAWN_STEPS
from simdist.results.recorder import STEPS

if TYPE_CHECKING:
    import torch

    from simdist.execution.timeline import Timeline
    from simdist.running import Session


def run_irregular(session: Session, ray_address: str | None) -> tuple[dict[str, torch.Tensor] | None, int]:
    """Run an irregular scenario and return the final parameters and the peak memory in bytes.

    Its workers are never between two steps at once, so that there are no checkpoints: what is lost begins anew.
    """
    return recovering(session, lambda: _run(session, ray_address), "step 1")


def _run(session: Session, ray_address: str | None) -> tuple[dict[str, torch.Tensor] | None, int]:
    scenario = session.scenario
    session.clear()
    timeline = build_timeline(scenario)
    scribe = Scribe(session, timeline)
    with ExitStack() as stack:
        hosts = stack.enter_context(build_hosts(scenario, session.job, ray_address))
        live = LiveRun(hosts, timeline, session.ledger, follow(time.monotonic, time.sleep) if paced(scenario) else None)
        try:
            live.run(range(scenario.workers), scribe)
        finally:
            scribe.draw()
            session.extra |= scribe.totals()
        return live.params, hosts.peak_rss_bytes()


def follow(clock: Callable[[], float], sleep: Callable[[float], None]) -> Callable[[float], None]:
    """Return a function that waits until as much wall time has passed as simulated time."""
    origin = clock()

    def hold(simulated: float) -> None:
        ahead = origin + simulated - clock()
        if ahead > 0:
            sleep(ahead)

    return hold


class Scribe:
    """Turns transfers and noted rows into ledger, steps, diagnostics and trace.

    A transfer is booked under the step that was under way when it ended: the last noted one plus one.
    """

    def __init__(self, session: Session, timeline: Timeline) -> None:
        self._session = session
        self._timeline = timeline
        self._step = 0
        self._bytes = 0
        self._seconds = 0.0
        self._busy = 0.0
        self._drawn_until = math.inf

    def __call__(self, booked: Sequence[Booked], noted: Sequence[Noted]) -> None:
        for transfer in booked:
            self._session.ledger.add(self._step + 1, transfer.entry, transfer.start, transfer.end)
            self._bytes += transfer.entry.sent_bytes_total
        for note in noted:
            if "train_loss" in note.row:
                self._add_step(note)
            else:
                rest = {key: value for key, value in note.row.items() if key != "step"}
                self._session.recorder.diagnostics(note.row.get("step", self._step), [rest])

    def draw(self) -> None:
        """Draw what began before the steps that fit into a time line were over."""
        events = [event for event in self._timeline.events if event.start < self._drawn_until]
        for event in sorted(events, key=lambda event: event.start):
            self._session.trace.add_event(event.op, event.members, event.start, event.end)

    def totals(self) -> dict[str, Any]:
        """Return the summary's byte counts, with what travelled after the last step: the ledger's own totals."""
        total, workers = self._session.ledger.total_bytes, self._session.scenario.workers
        return {
            "sent_bytes_total": total,
            "sent_bytes_per_worker_per_step": total / workers / self._step if self._step else 0.0,
        }

    def _add_step(self, note: Noted) -> None:
        self._step = int(note.row["step"])
        if self._step == DRAWN_STEPS:
            self._drawn_until = note.seconds
        workers = self._session.scenario.workers
        busy = sum(self._timeline.compute_seconds(worker) for worker in range(workers)) / workers
        # rows are noted in the order of their updates, which is the order of simulated time
        passed, computed = note.seconds - self._seconds, busy - self._busy
        row: dict[str, Any] = {name: note.row.get(name) for name in STEPS.names}
        row |= {
            "simulated_seconds": note.seconds,
            "compute_seconds": computed,
            "exposed_comm_seconds": max(0.0, passed - computed),
        }
        sent, self._bytes = self._bytes, 0
        self._seconds, self._busy = note.seconds, busy
        self._session.add_row(sent, row)

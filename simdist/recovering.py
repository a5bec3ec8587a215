"""Runs that lose actors or nodes start again by themselves, a few times."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from simdist.errors import WorkersLost

if TYPE_CHECKING:
    from simdist.running import Session

T = TypeVar("T")

#: how often a run starts again after a loss, where the scenario does not say
RETRIES = 3


def recovering(session: Session, attempt: Callable[[], T], where: str) -> T:
    """Call ``attempt`` again after each loss of workers, ``engine.retries`` times at most, and return its result.

    Args:
        attempt: runs from the last checkpoint, or from the start; to the same bits either way.
        where: what it starts from, for the news.

    Raises:
        WorkersLost: when that happened more often.
    """
    wanted = session.scenario.engine.retries
    retries = RETRIES if wanted is None else wanted
    while True:
        try:
            return attempt()
        except WorkersLost as loss:
            recoveries = session.extra.setdefault("recoveries", [])
            if len(recoveries) == retries:
                raise WorkersLost(f"{loss} (after {retries} new starts, the limit of engine.retries)") from loss
            rows = session.recorder.steps
            recoveries.append({"after_step": rows[-1]["step"] if rows else 0, "reason": str(loss)})
            session.tell(f"{loss}. Starting again from {where} ({len(recoveries)} of {retries} times)")

"""Paced runs: transfers are held back for real, so that wall time follows simulated time.

The clock of a lock-step run is known wave by wave. After each wave the pacer waits until as much wall time has passed
as simulated time; a machine that computes slower than the simulated one falls behind and is not sped up.
"""

from __future__ import annotations

from collections.abc import Callable

from simdist.communication.trace import StepOps
from simdist.execution.pricing import StepPricer, StepTiming


class Pacer:
    """Holds every wave of every step until its simulated end.

    Args:
        clock: returns wall seconds.
        sleep: waits for wall seconds.
    """

    def __init__(self, pricer: StepPricer, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
        self._pricer = pricer
        self._clock = clock
        self._sleep = sleep
        self._origin: float | None = None
        self._step_start = 0.0
        self._lag: tuple[float, ...] | None = None
        self._number = 1
        self._last: StepOps = ()

    def __call__(self, ops: StepOps) -> None:
        """Wait for the end of the last wave of a step so far; a shorter record than last time begins a new step."""
        now = self._clock()
        if self._origin is None:
            self._origin = now
        if len(ops) <= len(self._last):
            finished = self._price(self._last)
            self._number += 1
            self._step_start += finished.advance
            self._lag = finished.lag_after
        self._last = ops
        due = self._origin + self._step_start + self._price(ops).duration
        if due > now:
            self._sleep(due - now)

    def _price(self, ops: StepOps) -> StepTiming:
        return self._pricer.price(ops, self._lag, self._number, self._step_start)

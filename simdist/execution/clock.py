"""The virtual clock of a lock-step run: chains priced steps. A run and its re-timing use this one class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from simdist.communication.trace import CollectiveOp, StepOps
from simdist.execution.pricing import StepPricer, StepTiming


@dataclass(frozen=True)
class StepTimes:
    """The times of one step.

    Attributes:
        start: simulated seconds at which the first worker began the step.
        simulated_seconds: when the last worker had finished it, since the start of the run.
        compute_seconds: time computing, mean over workers.
        exposed_comm_seconds: the rest of the step: waiting for the network or for other workers.
        hidden_comm_seconds: of the computing, how long something was on the network meanwhile, mean over workers.
        timing: the step's details, relative to ``start``.
    """

    start: float
    simulated_seconds: float
    compute_seconds: float
    exposed_comm_seconds: float
    hidden_comm_seconds: float
    timing: StepTiming


class LockstepClock:
    """Simulated time since the start of the run."""

    def __init__(self, pricer: StepPricer) -> None:
        self._pricer = pricer
        self._start = 0.0
        self._now = 0.0
        self._lag: tuple[float, ...] | None = None
        self._number = 0

    @property
    def state(self) -> dict[str, Any]:
        """What the next step's times depend on, as plain data: equal states go on equally."""
        lag = None if self._lag is None else list(self._lag)
        return {"start": self._start, "now": self._now, "lag": lag, "number": self._number}

    def advance(self, ops: StepOps) -> StepTimes:
        """Price the next step and move the clock to its end."""
        self._number += 1
        timing = self._pricer.price(ops, self._lag, self._number, self._start)
        start, before = self._start, self._now
        self._now = start + timing.duration
        self._start = start + timing.advance
        self._lag = timing.lag_after
        exposed = max(0.0, self._now - before - timing.compute_seconds)
        return StepTimes(start, self._now, timing.compute_seconds, exposed, timing.hidden_comm_seconds, timing)


def collective_times(ops: StepOps, times: StepTimes) -> Iterator[tuple[float, float]]:
    """Yield the absolute (start, end) of every collective of a step, in order."""
    for wave, items in zip(ops, times.timing.waves, strict=True):
        for op, (start, end) in zip(wave, items, strict=True):
            if isinstance(op, CollectiveOp):
                yield times.start + start, times.start + end

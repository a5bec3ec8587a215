"""Draws the first steps of a lock-step run: what each worker does, and how busy the links are meanwhile."""

from __future__ import annotations

import numpy as np

from simdist.communication.trace import CollectiveOp, StepOps
from simdist.execution.clock import StepTimes
from simdist.execution.pricing import StepPricer, StepTiming
from simdist.network.sharing import Floats
from simdist.results.perfetto import WORKERS, LinkUse, Trace

#: messages of a step up to which it is replayed for its link use: that takes well under a second
MESSAGES = 20_000


class Drawing:
    """Adds the steps of a run to a trace, in order from the first.

    Link use is known event by event only, while most steps are priced in closed form. So a step that is drawn is
    replayed for it, if it is unlike the one before.
    """

    def __init__(self, trace: Trace, pricer: StepPricer) -> None:
        self._trace = trace
        self._pricer = pricer
        self._lag = (0.0,) * pricer.network.workers
        self._last: tuple[StepTiming, LinkUse] | None = None

    def add(self, step: int, ops: StepOps, times: StepTimes) -> None:
        """Draw a step, unless there are enough already."""
        if self._trace.full:
            return
        self._trace.add_step(step, times)
        if not self._small(ops):
            self._trace.leave_out_links(f"not drawn: more than {WORKERS} workers, or {MESSAGES} messages in a step")
            return
        # the pricer hands out the same timing where nothing has changed
        if self._last is None or self._last[0] is not times.timing:
            self._last = (times.timing, self._use(ops, step, times.start))
        self._lag = times.timing.lag_after
        use = self._last[1]
        self._trace.add_link_use(self._pricer.network.links, use._replace(seconds=times.start + use.seconds))

    def _small(self, ops: StepOps) -> bool:
        if self._pricer.network.workers > WORKERS:
            return False
        collectives = [op for wave in ops for op in wave if isinstance(op, CollectiveOp)]
        messages = 0
        for op, plans in zip(collectives, self._pricer.plans(ops), strict=True):
            members = self._pricer.network.workers // len(plans)
            for plan in plans:
                rounds = plan.rounds(op.op, op.payload_bytes, members, op.root)
                messages += sum(len(transfers) * repeat for transfers, repeat in rounds)
        return messages <= MESSAGES

    def _use(self, ops: StepOps, step: int, start: float) -> LinkUse:
        """Return the link use of a step, in seconds from its start."""
        seen: dict[float, Floats] = {0.0: np.zeros(len(self._pricer.network.links))}

        def watch(time: float, used: Floats) -> None:
            seen[time] = used  # of several for one time the last one holds

        self._pricer.watched(ops, watch, self._lag, step, start)
        sharing = self._pricer.network.sharing
        # just after: rounding may put the instant of a change before it
        capacities = np.array([sharing.capacities_at((start + time) * (1 + 1e-12)) for time in seen])
        used = np.array(list(seen.values()))
        percent = np.zeros_like(used)
        np.divide(100.0 * used, capacities, out=percent, where=capacities > 0)  # a link that is down carries nothing
        return LinkUse(np.array(list(seen)), percent)

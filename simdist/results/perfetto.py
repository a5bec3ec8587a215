"""``trace.json``: the simulated time line in Chrome's trace format, which https://ui.perfetto.dev opens.

One row per worker and stream (compute, network), the first steps of a run. Times are simulated microseconds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from simdist.communication.trace import CollectiveOp, ComputeOp, StepOps
from simdist.execution.clock import StepTimes

#: steps that are drawn; a time line of more helps nobody and does not load
STEPS = 5


class Trace:
    """Collects the spans of the first steps."""

    def __init__(self, workers: int) -> None:
        self._events: list[dict[str, Any]] = []
        self._steps = 0
        for worker in range(workers):
            self._name("process_name", worker, 0, f"worker {worker}")
            self._name("thread_name", worker, 0, "compute")
            self._name("thread_name", worker, 1, "network")

    def _name(self, what: str, pid: int, tid: int, name: str) -> None:
        self._events.append({"ph": "M", "name": what, "pid": pid, "tid": tid, "args": {"name": name}})

    def span(self, worker: int, stream: int, name: str, start: float, end: float, **args: Any) -> None:
        """Add one span; ``stream`` 0 is compute, 1 the network; times in simulated seconds."""
        event = {"ph": "X", "name": name, "pid": worker, "tid": stream, "ts": start * 1e6, "dur": (end - start) * 1e6}
        self._events.append({**event, "args": args})

    def add_step(self, step: int, ops: StepOps, times: StepTimes) -> None:
        """Add a lock-step step: each worker's waves, busy computing or on the network."""
        if self._steps >= STEPS:
            return
        self._steps += 1
        for worker, intervals in enumerate(times.timing.intervals):
            for wave, (start, end) in zip(ops, intervals, strict=True):
                for stream, kind in ((0, ComputeOp), (1, CollectiveOp)):
                    mine = [op for op in wave if isinstance(op, kind)]
                    if not mine:
                        continue
                    self.span(
                        worker, stream, _title(mine), times.start + start, times.start + end, step=step, **_args(mine)
                    )

    def write(self, path: Path) -> None:
        path.write_text(json.dumps({"traceEvents": self._events, "displayTimeUnit": "ms"}), encoding="utf-8")


def _title(ops: list[Any]) -> str:
    first = ops[0]
    if isinstance(first, ComputeOp):
        return "compute"
    more = f" and {len(ops) - 1} more" if len(ops) > 1 else ""
    return f"{first.op} {first.tensor}{more}"


def _args(ops: list[Any]) -> dict[str, Any]:
    if isinstance(ops[0], ComputeOp):
        return {"flops": sum(op.flops for op in ops)}
    return {"payload_bytes": sum(op.payload_bytes for op in ops), "axis": ops[0].axis, "purpose": ops[0].purpose}

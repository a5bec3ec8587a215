"""``trace.json``: the simulated time line in Chrome's trace format, which https://ui.perfetto.dev opens.

A process per worker with a row per stream (computing first), and a process ``network`` with a counter per link. Times
are simulated microseconds. Format: Google, Trace Event Format (events ``X``, ``C`` and ``M``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from simdist.communication.trace import CollectiveOp, ComputeOp, ReceiveOp, SendOp, SleepOp
from simdist.execution.clock import StepTimes
from simdist.execution.tasks import COMPUTE

#: steps that are drawn; a time line of more helps nobody and does not load
STEPS = 5
#: workers and links that are drawn: more rows than that are no picture
WORKERS = 64
LINKS = 32

Op: TypeAlias = "CollectiveOp | ComputeOp | SleepOp | SendOp | ReceiveOp"


class LinkUse(NamedTuple):
    """How much of their capacity links carry, constant between changes.

    Attributes:
        seconds: of the changes, simulated, ascending; shape [changes].
        percent: of each link's capacity from then on; shape [changes, links].
    """

    seconds: NDArray[np.float64]
    percent: NDArray[np.float64]


class _Span(NamedTuple):
    worker: int
    row: str
    title: str
    start: float
    end: float
    args: dict[str, Any]


class Trace:
    """Collects spans and link use of the first steps; times in simulated seconds."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._drawn = range(min(workers, WORKERS))
        self._spans: list[_Span] = []
        self._steps = 0
        self._busy_until: dict[tuple[int, str], float] = {}
        self._links: Sequence[str] = ()
        self._uses: list[LinkUse] = []
        self._no_links = "not drawn"

    @property
    def full(self) -> bool:
        """Whether enough steps have been drawn."""
        return self._steps >= STEPS

    def add_step(self, step: int, times: StepTimes) -> None:
        """Add a lock-step step: each worker's tasks, on the stream that they ran on. A full trace takes no more."""
        if self.full:
            return
        self._steps += 1
        timing = times.timing
        begins, ends = (times.start + timing.begin).tolist(), (times.start + timing.end).tolist()
        for task, begin, end in zip(timing.graph.tasks, begins, ends, strict=True):
            if task.free:
                continue
            title, args = _title(task.ops), {"step": step, **_args(task.ops)}
            self._spans += [
                _Span(worker, task.stream, title, begin[worker], end[worker], args)
                for worker in self._drawn
                if end[worker] > begin[worker]  # a group of one has nothing to do
            ]

    def add_event(self, op: Op, workers: Iterable[int], start: float, end: float) -> None:
        """Add what workers of an irregular program did or waited for; events come in the order of their starts.

        What runs at the same time on one stream of a worker, as messages may, gets rows of its own.
        """
        if not end > start:
            return
        stream, title, args = _stream(op), _title([op]), _args([op])
        for worker in set(workers).intersection(self._drawn):
            number = 1
            while start < self._busy_until.get((worker, row := _numbered(stream, number)), 0.0):
                number += 1
            self._busy_until[worker, row] = end
            self._spans.append(_Span(worker, row, title, start, end, args))

    def add_link_use(self, links: Sequence[str], use: LinkUse) -> None:
        """Add how busy the links are in a step; steps of unequal workers may overlap a little."""
        self._links = links
        self._uses.append(use)

    def leave_out_links(self, reason: str) -> None:
        """Say in the file why there are no counters of links."""
        self._no_links = reason

    def write(self, path: Path) -> None:
        """Write ``trace.json``."""
        counters, links = self._counters()
        text = {
            "traceEvents": [*self._names(), *self._durations(), *counters],
            "displayTimeUnit": "ms",
            "otherData": {
                "times": "simulated microseconds",
                "steps": f"the first {STEPS} at most",
                "workers": f"{len(self._drawn)} of {self._workers}",
                "links": links,
            },
        }
        path.write_text(json.dumps(text), encoding="utf-8")

    # -- events ------------------------------------------------------------------------------------------------------

    def _rows(self) -> dict[str, int]:
        """Number the rows: computing first, then by name, so that every trace of one kind of run looks alike."""
        names = sorted({span.row for span in self._spans}, key=lambda row: (row != COMPUTE, row))
        return {name: number for number, name in enumerate(names)}

    def _names(self) -> Iterator[dict[str, Any]]:
        rows = self._rows()
        used = {(span.worker, span.row) for span in self._spans}
        for worker in self._drawn:
            yield _metadata("process_name", worker, 0, name=f"worker {worker}")
            yield _metadata("process_sort_index", worker, 0, sort_index=worker)
            for row, number in rows.items():
                if (worker, row) in used:
                    yield _metadata("thread_name", worker, number, name=row)
                    yield _metadata("thread_sort_index", worker, number, sort_index=number)
        if self._uses:
            yield _metadata("process_name", self._workers, 0, name="network")
            yield _metadata("process_sort_index", self._workers, 0, sort_index=self._workers)

    def _durations(self) -> Iterator[dict[str, Any]]:
        rows = self._rows()
        for worker, row, title, start, end, args in self._spans:
            begin = start * 1e6
            yield {
                "ph": "X",
                "name": title,
                "pid": worker,
                "tid": rows[row],
                "ts": begin,
                "dur": end * 1e6 - begin,
                "args": args,
            }

    def _counters(self) -> tuple[list[dict[str, Any]], str]:
        """Return a counter event per change of the busiest links, and which these are, in words."""
        if not self._uses:
            return [], self._no_links
        seconds = np.unique(np.concatenate([use.seconds for use in self._uses]))
        # where the end of one step meets the start of the next, the busier of the two is shown
        percent = np.max([_at(use, seconds) for use in self._uses], axis=0)
        carried = np.diff(seconds) @ percent[:-1]
        busiest: list[int] = np.argsort(-carried, kind="stable")[:LINKS].tolist()
        chosen = sorted(link for link in busiest if carried[link] > 0)
        events = []
        for link in chosen:
            values = np.round(percent[:, link], 6)  # sums of rates may miss 100 by a rounding
            changes = np.flatnonzero(np.diff(values, prepend=0.0))
            events += [
                {
                    "ph": "C",
                    "name": self._links[link],
                    "pid": self._workers,
                    "ts": at * 1e6,
                    "args": {"percent of capacity": value},
                }
                for at, value in zip(seconds[changes].tolist(), values[changes].tolist(), strict=True)
            ]
        busy = int(np.count_nonzero(carried > 0))
        return events, f"the busiest {len(chosen)} of {busy} in use, of {len(self._links)} in all"


def _at(use: LinkUse, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the percentages at some instants, shape [instants, links]; zero before the first change."""
    at = np.searchsorted(use.seconds, seconds, side="right") - 1
    values: NDArray[np.float64] = np.where(at[:, None] >= 0, use.percent[at], 0.0)
    return values


def _metadata(what: str, pid: int, tid: int, **args: Any) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": args}


def _numbered(stream: str, number: int) -> str:
    return stream if number == 1 else f"{stream} ({number})"


def _stream(op: Op) -> str:
    """Name the row of something that an irregular program does."""
    if isinstance(op, CollectiveOp):
        return op.axis
    if isinstance(op, ComputeOp):
        return COMPUTE
    if isinstance(op, SendOp):
        return f"to worker {op.to}"
    return "sleep" if isinstance(op, SleepOp) else "waits for messages"


def _title(ops: Sequence[Op]) -> str:
    first = ops[0]
    if isinstance(first, CollectiveOp):
        more = f" and {len(ops) - 1} more" if len(ops) > 1 else ""
        return f"{first.op} {first.tensor}{more}"
    if isinstance(first, ComputeOp):
        return " ".join(word for word in (first.purpose, first.tensor, first.what) if word) or COMPUTE
    if isinstance(first, SendOp):
        return f"send {first.tensor}"
    return "sleep" if isinstance(first, SleepOp) else "wait"


def _args(ops: Sequence[Op]) -> dict[str, Any]:
    first = ops[0]
    if isinstance(first, CollectiveOp):
        payload = sum(op.payload_bytes for op in ops if isinstance(op, CollectiveOp))
        return {"payload_bytes": payload, "axis": first.axis, "purpose": first.purpose, "codec": first.codec}
    if isinstance(first, ComputeOp):
        return {"flops": first.flops, "memory_bytes": first.memory_bytes}
    if isinstance(first, SendOp):
        return {"payload_bytes": first.payload_bytes, "purpose": first.purpose, "codec": first.codec}
    return {}

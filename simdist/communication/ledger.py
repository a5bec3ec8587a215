"""The ledger: a row per collective or message, from the payload that was really encoded, and its hash."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from simdist.communication.plans import Plan
from simdist.communication.trace import CollectiveOp, SendOp, StepOps
from simdist.program import MeshShape

#: columns of ``ledger.parquet`` (contract.md), and ``sent_bytes_total``, the sum over all members of all groups
COLUMNS = (
    "step",
    "op",
    "purpose",
    "tensor",
    "axis",
    "group_size",
    "groups",
    "payload_bytes",
    "sent_bytes_per_worker",
    "sent_bytes_total",
    "codec",
    "plan",
    "start_seconds",
    "end_seconds",
)


@dataclass(frozen=True)
class Entry:
    """One ledger row without its step and times.

    Attributes:
        payload_bytes: the full message S (see :class:`simdist.communication.trace.CollectiveOp`).
        sent_bytes_per_worker: mean over the members of a group, what one worker puts on its link; whole unless the
            payload does not divide into equal chunks.
        sent_bytes_total: exact sum over all members of all groups.
    """

    op: str
    purpose: str
    tensor: str
    axis: str
    group_size: int
    groups: int
    payload_bytes: int
    sent_bytes_per_worker: float
    sent_bytes_total: int
    codec: str
    plan: str


def one_plan(mesh: MeshShape, plan: Plan) -> Callable[[StepOps], Sequence[Sequence[Plan]]]:
    """Return the choice of a single plan for all collectives of all groups."""

    def choose(ops: StepOps) -> list[tuple[Plan, ...]]:
        collectives = [op for wave in ops for op in wave if isinstance(op, CollectiveOp)]
        return [(plan,) * (mesh.workers // mesh.size(op.axis)) for op in collectives]

    return choose


class Ledger:
    """Collects rows step by step; equal steps share their entries, so recording is cheap.

    Args:
        plans: for every collective of a step, in order, the plan of each group (see :func:`one_plan`).
    """

    def __init__(self, mesh: MeshShape, plans: Callable[[StepOps], Sequence[Sequence[Plan]]]) -> None:
        self.mesh = mesh
        self._plans = plans
        self._rows: list[tuple[int, Entry, float, float]] = []
        self._entries = lru_cache(maxsize=None)(self._step_entries)
        # a model has many tensors of few sizes
        self._sent = lru_cache(maxsize=4096)(lambda plan, *what: int(plan.total_sent(*what)))
        self._totals = lru_cache(maxsize=None)(lambda ops: sum(e.sent_bytes_total for e in self._entries(ops)))

    def entry(self, op: CollectiveOp, plans: Sequence[Plan]) -> Entry:
        """Book one collective on some groups of its axis, each with the plan that carried it out."""
        size = self.mesh.size(op.axis)
        counts = Counter(plans)
        total = sum(n * self._sent(plan, op.op, op.payload_bytes, size, op.root) for plan, n in counts.items())
        return Entry(
            op.op,
            op.purpose,
            op.tensor,
            op.axis,
            size,
            len(plans),
            op.payload_bytes,
            total / len(plans) / size,
            total,
            op.codec,
            " and ".join(dict.fromkeys(plan.name for plan in plans)),
        )

    @staticmethod
    def message(op: SendOp) -> Entry:
        """Book one point-to-point message."""
        sent = op.payload_bytes
        return Entry("send", op.purpose, op.tensor, "", 2, 1, sent, float(sent), sent, op.codec, "direct")

    def _step_entries(self, ops: StepOps) -> tuple[Entry, ...]:
        collectives = [op for wave in ops for op in wave if isinstance(op, CollectiveOp)]
        return tuple(self.entry(op, plans) for op, plans in zip(collectives, self._plans(ops), strict=True))

    def add_step(self, step: int, ops: StepOps, times: Iterable[tuple[float, float]]) -> None:
        """Add the rows of one lock-step step; ``times`` are (start, end) of its collectives, in order."""
        for entry, (start, end) in zip(self._entries(ops), times, strict=True):
            self._rows.append((step, entry, start, end))

    def add(self, step: int, entry: Entry, start: float, end: float) -> None:
        """Add one row of an irregular program."""
        self._rows.append((step, entry, start, end))

    def step_bytes(self, ops: StepOps) -> int:
        """Return the bytes that all workers together send in a step."""
        return self._totals(ops)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def total_bytes(self) -> int:
        return sum(entry.sent_bytes_total for _, entry, _, _ in self._rows)

    def columns(self) -> dict[str, list[object]]:
        """Return the table by column, in the order of :data:`COLUMNS`."""
        table: dict[str, list[object]] = {"step": [row[0] for row in self._rows]}
        for name in COLUMNS[1:-2]:
            table[name] = [getattr(row[1], name) for row in self._rows]
        table["start_seconds"] = [row[2] for row in self._rows]
        table["end_seconds"] = [row[3] for row in self._rows]
        return table

    def sha256(self) -> str:
        """Hash every column but the times, row by row."""
        digest = hashlib.sha256()
        text: dict[Entry, bytes] = {}
        for step, entry, _, _ in self._rows:
            if entry not in text:
                text[entry] = "\x1f".join(str(getattr(entry, name)) for name in COLUMNS[1:-2]).encode()
            digest.update(f"{step}\x1f".encode() + text[entry] + b"\n")
        return digest.hexdigest()

"""What ``simdist plan`` prints: time, FLOPs, bytes and memory, a column per plan."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

from simdist.units import format_size, format_time

if TYPE_CHECKING:
    from rich.table import Table

    from simdist.planned import Planned

Named: TypeAlias = "Sequence[tuple[str, Planned]]"

#: widths of the quantities' column and of the others: a narrow terminal gets several tables beneath each other
_TITLES, _COLUMN = 34, 13


def tables(plans: Named, width: int = 120) -> list[Table]:
    """Return tables of some plans, each with its name, for a terminal of this many columns."""
    from rich.markup import escape
    from rich.table import Column, Table

    each = max(1, (width - _TITLES) // _COLUMN)
    columns, found = [list(_cells(plan, plans)) for _, plan in plans], []
    for first in range(0, len(plans), each):
        here = slice(first, first + each)
        # names may fold, numbers may not
        shown = [Column(escape(name), justify="right", overflow="fold", min_width=9) for name, _ in plans[here]]
        table = Table(Column("of a worker, per step", no_wrap=True), *shown)
        section = ""
        for cells in zip(*columns[here], strict=True):
            name, title, _ = cells[0]
            if name != section:
                if section:
                    table.add_section()
                table.add_row(f"[bold]{name}[/bold]")
                section = name
            table.add_row(f"  {title}", *(text for _, _, text in cells))
        found.append(table)
    return found


def _cells(plan: Planned, plans: Named) -> Iterator[tuple[str, str, str]]:
    """Yield (section, quantity, text) of a plan: everything that any of the plans has."""
    every = [each for _, each in plans]
    time, memory = "simulated time", plan.memory
    yield time, "step", format_time(plan.step_seconds)
    for title, key in (("computing", "compute"), ("exposed communication", "exposed_comm"), ("hidden", "hidden_comm")):
        yield time, title, format_time(plan.split[f"{key}_seconds"])
    for title, key in (("forward, from start to end", "forward"), ("backward", "backward"), ("update", "optimizer")):
        yield time, title, format_time(plan.phases[key])
    examples = plan.samples * plan.scenario.workers
    yield time, "examples a second, all workers", f"{examples / plan.step_seconds:,.0f}" if plan.step_seconds else "-"

    for purpose in dict.fromkeys(purpose for each in every for purpose in each.flops):
        yield "FLOPs", _PURPOSES.get(purpose, purpose), format_flops(plan.flops.get(purpose, 0.0))

    for sent in dict.fromkeys(key for each in every for key in each.sent):
        yield "bytes sent", ", ".join(sent), _size(plan.sent.get(sent))
    total = math.fsum(plan.sent.values())
    yield "bytes sent", "in all", _size(total)
    yield "bytes sent", "by all workers", _size(total * plan.scenario.workers)

    for kind in dict.fromkeys(kind for each in every for kind, size in each.memory.held.items() if size):
        yield "memory", kind.replace("_", " "), _size(memory.held.get(kind))
    yield "memory", "gradients", _size(memory.gradients)
    yield "memory", "unsharded units", _size(memory.unsharded)
    yield "memory", "activations", _size(memory.activations, "not known")
    yield "memory", "in all", _size(memory.total(checkpointing=False))
    yield "memory", "activations, checkpointing", _size(memory.checkpointed, "not known")
    yield "memory", "in all, checkpointing", _size(memory.total(checkpointing=True))
    yield "memory", "device", f"{plan.scenario.compute.device} {_size(memory.device, '')}".strip()
    yield "memory", "verdict", memory.verdict


_PURPOSES = {"optimizer": "update", "grad_reduce": "gradient compression"}


def _size(size: float | None, nothing: str = "-") -> str:
    """Show bytes with four digits."""
    return nothing if not size else format_size(float(f"{size:.4g}"))


def format_flops(flops: float) -> str:
    """Write a number of operations with a decimal prefix.

    >>> format_flops(1.5e12)
    '1.5T'
    """
    for scale, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if flops >= scale:
            return f"{flops / scale:.4g}{prefix}"
    return f"{flops:.4g}" if flops else "-"

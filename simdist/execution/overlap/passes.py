"""A recorded step cut into passes over FSDP units, with what each gathers before and reduces after."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import TypeAlias

from simdist.communication.trace import CollectiveOp, ComputeOp, StepOps, WaveOps
from simdist.execution.compute_model import PASSES
from simdist.execution.overlap.policy import Overlap
from simdist.execution.tasks import GraphBuilder, StepGraph, side_by_side

#: the stream on which gradients are compressed, beside backward as communication hooks run; contention is not modelled
HOOKS = "compression"


@dataclass
class Pass:
    """One unit's forward or backward pass, as numbers of waves.

    Attributes:
        gathers: what brings the unit's parameters together before it.
        compute: the pass itself; None where a record ends before it.
        reductions: what is done with its gradients afterwards, one wave after the other.
    """

    gathers: list[int]
    compute: int | None
    reductions: list[int] = field(default_factory=list)


@dataclass
class Rest:
    """A wave that belongs to no pass (the optimizer, measurements): it waits for all before, all after for it."""

    wave: int


Section: TypeAlias = "list[Pass] | Rest"


class PassOverlap(Overlap):
    """A policy for the passes of a step; all else stays in order, one wave after the other."""

    def graph(self, step: StepOps) -> StepGraph:
        builder = GraphBuilder(step)
        before: tuple[int, ...] = ()
        for section in sections(step):
            if isinstance(section, Rest):
                before = builder.add([section.wave], before, side_by_side) or before
            else:
                before = self.add_passes(builder, section, before)
        return builder.graph()

    def needs_lockstep(self, lockstep: bool) -> str | None:
        """Return the problem of a schedule whose workers differ."""
        if lockstep:
            return None
        return (
            f"got {self.policy!r} with a schedule whose workers decide by themselves what runs beside what; "
            "expected 'none'"
        )

    @abstractmethod
    def add_passes(self, builder: GraphBuilder, passes: list[Pass], before: tuple[int, ...]) -> tuple[int, ...]:
        """Add a run of passes that comes after the tasks ``before``; return what the rest of the step waits for."""


def sections(step: StepOps) -> list[Section]:
    """Cut a step into runs of passes and what stands between them, in order."""
    found: list[Section] = []
    gathers: list[int] = []
    for number, wave in enumerate(step):
        kind = _kind(wave)
        current = found[-1] if found and isinstance(found[-1], list) else None
        if kind == "gather":
            gathers.append(number)
        elif kind == "pass":
            if current is None:
                current = []
                found.append(current)
            current.append(Pass(gathers, number))
            gathers = []
        elif kind == "reduction" and current is not None and not gathers:
            current[-1].reductions.append(number)
        else:
            found.extend(Rest(gather) for gather in gathers)
            gathers = []
            found.append(Rest(number))
    if gathers:  # a record that ends early, as paced runs hand it in
        last = found[-1] if found and isinstance(found[-1], list) else None
        if last is None:
            found.append([Pass(gathers, None)])
        else:
            last.append(Pass(gathers, None))
    return found


def _kind(wave: WaveOps) -> str:
    if not wave:
        return "nothing"
    if all(isinstance(op, CollectiveOp) and op.purpose == "param_gather" for op in wave):
        return "gather"
    if all(isinstance(op, ComputeOp) and op.purpose in PASSES for op in wave):
        return "pass"
    if all(isinstance(op, (CollectiveOp, ComputeOp)) and op.purpose == "grad_reduce" for op in wave):
        return "reduction"
    return "rest"

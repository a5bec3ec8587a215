"""No overlap: one thing after the other, as the program says it."""

from __future__ import annotations

from simdist.communication.trace import StepOps
from simdist.execution.overlap.policy import Overlap, overlaps
from simdist.execution.tasks import GraphBuilder, StepGraph, side_by_side


@overlaps.register("none")
class NoOverlap(Overlap):
    """Every wave waits for the one before: all communication is exposed, which is simple and hand-checkable.

    Items of one wave still run side by side: what a program awaits together is in flight together.
    """

    policy: str = "none"

    def problem(self, shards: int, lockstep: bool) -> str | None:
        return None

    def graph(self, step: StepOps) -> StepGraph:
        builder = GraphBuilder(step)
        before: tuple[int, ...] = ()
        for wave in range(len(step)):
            before = builder.add([wave], before, side_by_side) or before
        return builder.graph()

"""FSDP's overlap: gathers run under earlier passes, reductions under later ones."""

from __future__ import annotations

from simdist.execution.overlap.passes import HOOKS, Pass, PassOverlap
from simdist.execution.overlap.policy import overlaps
from simdist.execution.tasks import GraphBuilder, communicator
from simdist.settings import NaturalInt


@overlaps.register("fsdp")
class FSDP(PassOverlap):
    """PyTorch FSDP2's schedule: gathers under the passes before, reduce-scatters under the backward passes after.

    The order in which work is issued with ``prefetch`` = 1 (FSDP2's default: implicit in forward, ``BACKWARD_PRE`` in
    backward): gather 1, gather 2, pass 1, gather 3, pass 2, reduce 2, gather 4, pass 3, ... Each axis of the mesh has a
    communicator whose collectives run in that order, one at a time; communicators of different axes (HSDP's all-reduce
    over replicas) run beside each other and share links. The optimizer waits for all reductions, and its own waves
    follow one after the other.

    Attributes:
        prefetch: how many units ahead parameters are gathered: unit k's gather may begin when unit k - prefetch's pass
            begins. 0: when the pass before has ended.
    """

    policy: str = "fsdp"
    prefetch: NaturalInt = 1

    @property
    def gathered_ahead(self) -> int:
        return self.prefetch

    def problem(self, shards: int, lockstep: bool) -> str | None:
        return self.needs_lockstep(lockstep)

    def add_passes(self, builder: GraphBuilder, passes: list[Pass], before: tuple[int, ...]) -> tuple[int, ...]:
        computed: list[tuple[int, ...]] = []
        gathered: list[tuple[int, ...]] = []
        ends: list[int] = list(before)

        def gather(number: int) -> None:
            earlier = number - 1 - self.prefetch
            last = computed[earlier] if earlier >= 0 else before
            for wave in passes[number].gathers:
                last = builder.add([wave], last, communicator)
            gathered.append(last if passes[number].gathers else ())

        for number, one in enumerate(passes):
            while len(gathered) <= min(number + self.prefetch, len(passes) - 1):
                gather(len(gathered))
            previous = computed[-1] if computed else before
            if one.compute is None:
                ends.extend(gathered[number])
                continue
            computed.append(builder.add([one.compute], (*previous, *gathered[number]), communicator))
            last = computed[-1]
            for wave in one.reductions:
                last = builder.add([wave], last, communicator, HOOKS)
            ends.extend(last)
        return tuple(dict.fromkeys(ends))

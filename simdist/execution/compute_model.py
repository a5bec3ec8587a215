"""Seconds of computing: a roofline of arithmetic and memory, or measured times, on workers that differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from simdist.communication.trace import ComputeOp, StepOps
from simdist.errors import InputError, suggest

#: purposes of what is computed unit by unit
PASSES = ("forward", "backward")
#: all other computing of a step, gradient compression included
OPTIMIZER = "optimizer"

#: (purpose, FSDP unit) to the measured seconds of that pass in a step; unit None: of everything else with that purpose
Profile: TypeAlias = "Mapping[tuple[str, str | None], float]"


@dataclass(frozen=True)
class ComputeModel:
    """How long workers take.

    Attributes:
        flops_per_second: of a worker of speed one.
        slowness: per worker, how much longer it takes than one of speed one.
        memory_bytes_per_second: rate at which that worker reads or writes its memory; None: at once.
        profile: measured seconds, which stand in for the roofline.
        stragglers: step to each worker's further slowness in it; None: none.
        source: what the profile is called in messages.
    """

    flops_per_second: float
    slowness: tuple[float, ...]
    memory_bytes_per_second: float | None = None
    profile: Profile | None = None
    stragglers: Callable[[int], tuple[float, ...]] | None = None
    source: str = "compute.profile"

    @classmethod
    def of_speeds(cls, flops_per_second: Sequence[float]) -> ComputeModel:
        """Return workers of given speeds in FLOP/s, with memory that is never the bottleneck."""
        first = flops_per_second[0]
        return cls(first, tuple(first / speed for speed in flops_per_second))

    @property
    def workers(self) -> int:
        return len(self.slowness)

    def roofline(self, op: ComputeOp) -> float:
        """Return the seconds of one operation on a worker of speed one: arithmetic or memory, whichever takes longer.

        Williams, Waterman & Patterson 2009, Roofline.
        """
        arithmetic = op.flops / self.flops_per_second
        if self.memory_bytes_per_second is None:
            return arithmetic
        return max(arithmetic, op.memory_bytes / self.memory_bytes_per_second)

    def step_seconds(self, step: StepOps) -> dict[tuple[int, int], float]:
        """Return the seconds of every compute operation of a step, by (wave, item), on a worker of speed one.

        Measured seconds are shared among the operations that they are of, in proportion to roofline times (equally
        where these are zero), and add up to what was measured.

        Raises:
            InputError: when the profile names a unit that the step has not.
        """
        ops = {
            (wave, item): op
            for wave, items in enumerate(step)
            for item, op in enumerate(items)
            if isinstance(op, ComputeOp)
        }
        seconds = {place: self.roofline(op) for place, op in ops.items()}
        if self.profile is None:
            return seconds
        if any(op.purpose == "backward" for op in ops.values()):
            # forward is over: the record (paced runs hand in shorter ones) shows all units there are
            check_units(self.profile, {op.tensor for op in ops.values() if op.purpose in PASSES}, self.source)
        places: dict[tuple[str, str | None], list[tuple[int, int]]] = {}
        for place, op in ops.items():
            key = _measured_as(op, self.profile)
            if key is not None:
                places.setdefault(key, []).append(place)
        for key, among in places.items():
            total = math.fsum(seconds[place] for place in among)
            for place in among:
                share = seconds[place] / total if total > 0 else 1 / len(among)
                seconds[place] = self.profile[key] * share
        return seconds

    def slowness_in(self, step: int) -> tuple[float, ...]:
        """Return how much longer each worker takes in a step (from 1) than one of speed one."""
        if self.stragglers is None:
            return self.slowness
        return tuple(fixed * more for fixed, more in zip(self.slowness, self.stragglers(step), strict=True))

    def seconds(self, op: ComputeOp, worker: int, turn: int) -> float:
        """Return the seconds of one operation of an irregular program, as the worker's ``turn``-th (from 1)."""
        assert self.profile is None, "irregular programs do not compute unit by unit"
        return self.roofline(op) * self.slowness_in(turn)[worker]


def check_units(profile: Profile, units: Iterable[str], source: str) -> None:
    """Raise InputError, which begins with ``source``, when a profile names a unit that is none of ``units``."""
    known = sorted(units)
    for purpose, unit in profile:
        if unit is not None and unit not in known:
            raise InputError(
                f"{source}, {purpose}.{unit}: got a unit that this model has not; expected one of {', '.join(known)}."
                f"{suggest(unit, known)}"
            )


def _measured_as(op: ComputeOp, profile: Profile) -> tuple[str, str | None] | None:
    """Return the entry of a profile that an operation belongs to; None: to no one."""
    purpose = op.purpose if op.purpose in PASSES else OPTIMIZER
    own, rest = (purpose, op.tensor), (purpose, None)
    if purpose in PASSES and own in profile:
        return own
    return rest if rest in profile else None

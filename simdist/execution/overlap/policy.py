"""Base class of overlap policies: what of a step's traffic may run under its computing."""

from __future__ import annotations

from abc import ABC, abstractmethod

from simdist.communication.trace import StepOps
from simdist.execution.tasks import StepGraph
from simdist.registry import Registry
from simdist.settings import Settings


class Overlap(Settings, ABC):
    """How a framework schedules a step; values and bytes do not depend on it, so it may change in a re-timing.

    Attributes:
        policy: name in the registry.
    """

    policy: str

    @property
    def gathered_ahead(self) -> int:
        """How many units have their parameters gathered while an earlier one is under way: memory, not time."""
        return 0

    @abstractmethod
    def graph(self, step: StepOps) -> StepGraph:
        """Return the tasks of a recorded step, in an order in which each comes after all that it waits for."""

    @abstractmethod
    def problem(self, shards: int, lockstep: bool) -> str | None:
        """Say what is wrong with this policy, and what to write instead; None: nothing.

        Args:
            shards: size of that axis of the mesh.
            lockstep: whether all workers run the same steps.
        """


overlaps: Registry[type[Overlap]] = Registry("overlap policy")

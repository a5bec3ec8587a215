"""When workers talk: a schedule is a worker's outermost loop, and its settings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from simdist.registry import Registry
from simdist.settings import Settings

if TYPE_CHECKING:
    from simdist.program.program import IrregularProgram, LockstepProgram
    from simdist.schedules.job import Job


class Schedule(Settings, ABC):
    """Settings of a worker's outermost loop."""

    name: str

    #: True when all workers make the same requests in the same order, so that values do not depend on time:
    #: such runs may be stacked, and re-timed without training
    lockstep: ClassVar[bool] = True

    #: True when gradients are averaged over the axes of the mesh, where they may be compressed
    compresses: ClassVar[bool] = False

    @abstractmethod
    def program(self, job: Job) -> LockstepProgram | IrregularProgram:
        """Return the worker program: a LockstepProgram if ``lockstep``, else an IrregularProgram.

        Raises:
            InputError: when the schedule does not fit the job's mesh.
        """


schedules: Registry[type[Schedule]] = Registry("schedule")

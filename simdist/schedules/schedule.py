"""When workers talk: a schedule is a worker's outermost loop, and its settings."""

from __future__ import annotations

from abc import ABC
from typing import ClassVar

from simdist.registry import Registry
from simdist.settings import Settings


class Schedule(Settings, ABC):
    """Settings of a worker's outermost loop."""

    name: str

    #: True when all workers make the same requests in the same order, so that values do not depend on time:
    #: such runs may be stacked, and re-timed without training
    lockstep: ClassVar[bool] = True


schedules: Registry[type[Schedule]] = Registry("schedule")

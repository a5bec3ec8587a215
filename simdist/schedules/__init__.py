"""When workers talk: one file per schedule. A new one: a file here, and its import below."""

from simdist.schedules import every_step as every_step
from simdist.schedules.job import Job
from simdist.schedules.schedule import Schedule, schedules

__all__ = ["Job", "Schedule", "schedules"]

"""When workers talk: one file per schedule. A new one: a file here, and its import below."""

from simdist.schedules.async_server import AsyncServer
from simdist.schedules.every_step import EveryStep
from simdist.schedules.job import Job
from simdist.schedules.learning_rate import LearningRate
from simdist.schedules.schedule import Schedule, schedules

__all__ = ["AsyncServer", "EveryStep", "Job", "LearningRate", "Schedule", "schedules"]

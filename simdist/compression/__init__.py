"""Gradient compression by name. A new one: a file here, and its import below."""

from simdist.compression.compression import Compression, Link, compressions
from simdist.compression.demo import DeMo
from simdist.compression.ef21 import EF21
from simdist.compression.error_feedback import ErrorFeedback
from simdist.compression.majority_vote import MajorityVote
from simdist.compression.powersgd import PowerSGD

__all__ = ["EF21", "Compression", "DeMo", "ErrorFeedback", "Link", "MajorityVote", "PowerSGD", "compressions"]

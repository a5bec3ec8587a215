"""What runs under what: policies that turn a recorded step into tasks; importing this package registers them all."""

from simdist.execution.overlap.ddp import DDP
from simdist.execution.overlap.fsdp import FSDP
from simdist.execution.overlap.nothing import NoOverlap
from simdist.execution.overlap.policy import Overlap, overlaps

__all__ = ["DDP", "FSDP", "NoOverlap", "Overlap", "overlaps"]

"""Where parameters live and how gradients reach the rule: sharding as FSDP2 does it."""

from simdist.parallelism.layout import Layout, UnitLayout
from simdist.parallelism.reducing import Compressions, Reduction

__all__ = ["Compressions", "Layout", "Reduction", "UnitLayout"]

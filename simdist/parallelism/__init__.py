"""Where parameters live and how gradients reach the rule: sharding as FSDP2 does it."""

from simdist.parallelism.layout import Layout, UnitLayout

__all__ = ["Layout", "UnitLayout"]

"""simdist: distributed training without a cluster. Real training, provable bytes, simulated network time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simdist.scenario import Scenario, Sweep

__version__ = "0.1.0"
__all__ = ["Scenario", "Sweep", "__version__"]


def __getattr__(name: str) -> Any:
    # lazily, so that `simdist --help` does not wait for torch
    if name in ("Scenario", "Sweep"):
        from simdist import scenario

        return getattr(scenario, name)
    raise AttributeError(f"module 'simdist' has no attribute {name!r}")

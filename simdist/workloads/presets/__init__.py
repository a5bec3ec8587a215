"""Models by name for ``simdist plan``: published sizes as settings of a workload, one file per family."""

from simdist.workloads.presets import gpt2, llama3
from simdist.workloads.presets.preset import Preset, presets

__all__ = ["Preset", "gpt2", "llama3", "presets"]

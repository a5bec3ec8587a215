"""What rules cannot do without: settings with which every registered optimizer trains on these tests' small models.

The ranks of low-rank rules stay below the matrices' own, where single precision tells columns from noise.
"""

from __future__ import annotations

from typing import Any

_ADAPTIVE = {"rank": 4, "rank_min": 2, "rank_multiple": 2, "rank_max_fraction": 0.5}

NEEDS: dict[str, dict[str, Any]] = {
    "dion": {"rank": 2},
    "orth_dion": {"rank": 2},
    "adadion_v1": _ADAPTIVE,
    "adadion_v2": {"rank_fraction": 0.25, "rank_min": 2, "rank_multiple": 2, "rank_max_fraction": 0.5},
    "adadion_v3": _ADAPTIVE,
    "ef21_muon": {"codec": "topk(fraction=0.5, values=fp64)"},
    "onebit_adam": {"warmup_steps": 4},
}

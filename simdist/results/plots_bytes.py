"""Where the bytes of a step go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from simdist.results.plots_style import BAR_STYLES, new_figure, size_label, size_scale, with_style
from simdist.results.tables import Run

_WORDS = {
    "param_gather": "parameter gather",
    "grad_reduce": "gradient reduction",
    "outer_sync": "outer synchronisation",
}


def traffic_name(purpose: str, axis: str) -> str:
    """Name a kind of traffic for people.

    >>> traffic_name("param_gather", "shards")
    'parameter gather (shards)'
    """
    words = _WORDS.get(purpose, purpose.replace("_", " "))
    return f"{words} ({axis})" if axis else words


@with_style
def bytes_by_purpose(runs: Sequence[Run]) -> Figure:
    """Draw a bar per run, stacked by purpose and mesh axis, with the total at its end."""
    tables = [run.bytes_by_purpose for run in runs]
    total = {key: sum(table.get(key, 0.0) for table in tables) for table in tables for key in table}
    keys = sorted((key for key in total if total[key] > 0), key=lambda key: (-total[key], key))
    scale, unit = size_scale(max(sum(table.values()) for table in tables))
    figure, [axes] = new_figure(1.35 + 0.42 * len(runs) + 0.2 * ((len(keys) + 1) // 2))
    places = np.arange(len(runs))
    ends = np.zeros(len(runs))
    handles = []
    for index, key in enumerate(keys):
        color, hatch = BAR_STYLES[index % len(BAR_STYLES)]
        values = np.array([table.get(key, 0.0) / scale for table in tables])
        look: Any = {"facecolor": color, "hatch": hatch, "edgecolor": "#222222", "linewidth": 0.7}
        axes.barh(places, values, left=ends, height=0.62, label=traffic_name(*key), **look)
        handles.append(Patch(label=traffic_name(*key), **look))
        ends += values
    for place, end in zip(places, ends, strict=True):
        axes.annotate(
            size_label(end * scale), (end, place), xytext=(5, 0), textcoords="offset points", va="center", fontsize=9
        )
    axes.set_yticks(places, [run.label for run in runs])
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, ends.max() * 1.14)
    axes.set_xlabel(f"Sent per worker and step ({unit})")
    figure.legend(handles=handles, loc="outside upper center", ncols=2, handlelength=2.2, handleheight=1.1)
    return figure

"""Figure of the errors: one panel for each operation, signed error against payload, all measured cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.fidelity.real_links.cases import MEMBERS, OPS, PAYLOADS, RATES
from analysis.fidelity.real_links.predict import Prediction
from simdist.results.plots_style import DPI, GREY, WIDTH, save, with_style

#: errors beyond are drawn at the edge
EDGE = 0.2
_MARKERS = dict(zip(MEMBERS, ("o", "^", "s", "D"), strict=True))
#: slow links are light, fast ones dark, and also left and right of each other
_SHADES = dict(zip(RATES, ("#fde3c3", "#f7a35c", "#d95f0e", "#8c2d04", "#000000"), strict=True))

_POINT: Mapping[str, Any] = {"markersize": 4.6, "markeredgecolor": "#444444", "markeredgewidth": 0.6}


@with_style
def draw(predictions: Sequence[Prediction], stem: Path) -> tuple[Path, Path]:
    """Draw the errors of all predictions and write them as PNG and SVG."""
    figure = Figure(figsize=(WIDTH, 7.6), dpi=DPI, layout="constrained")
    panels = figure.subplots(len(OPS), 1, sharex=True)
    for axes, op in zip(panels, OPS, strict=True):
        _panel(axes, [found for found in predictions if found.measured.case.op == op])
        axes.set_title(op.replace("_", "-"), loc="left", fontsize=9.5, pad=3)
    panels[-1].set_xlabel("payload (KiB); within each group from 20 Mbit/s (left) to 500 Mbit/s (right)")
    figure.supylabel("error of the simulated seconds (%); grey: 3 %, dashed: 10 %", fontsize=10)
    kinds = [
        Line2D([], [], linestyle="", marker=marker, color=GREY, markerfacecolor="white", label=f"{members} hosts")
        for members, marker in _MARKERS.items()
    ]
    shades = [
        Line2D(
            [], [], linestyle="", marker="o", color="#444444", markerfacecolor=shade, label=f"{rate // 10**6} Mbit/s"
        )
        for rate, shade in _SHADES.items()
    ]
    figure.legend(
        handles=[*kinds, *shades], ncols=5, loc="outside upper left", fontsize=8.5, handlelength=1.2, columnspacing=1.2
    )
    return save(figure, stem)


def _panel(axes: Axes, predictions: Sequence[Prediction]) -> None:
    axes.axhspan(-3, 3, color="#dddddd", zorder=0, linewidth=0)
    for bound in (-10, 10):
        axes.axhline(bound, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    for found in predictions:
        case = found.measured.case
        size = min(range(len(PAYLOADS)), key=lambda place: abs(PAYLOADS[place] - case.payload_bytes))
        x = size + (RATES.index(case.rate_bits) - 2) * 0.16 + (MEMBERS.index(case.members) - 1.5) * 0.03
        y = max(-EDGE, min(EDGE, found.error))
        marker, shade = _MARKERS[case.members], _SHADES[case.rate_bits]
        axes.plot(x, 100 * y, marker, color=shade, zorder=3, clip_on=False, **_POINT)
    axes.set_xlim(-0.5, len(PAYLOADS) - 0.5)
    axes.set_ylim(-100 * EDGE, 100 * EDGE)
    axes.set_xticks(range(len(PAYLOADS)), [f"{payload // 1024:,}" for payload in PAYLOADS])
    axes.set_yticks((-20, -10, -3, 3, 10, 20))
    axes.grid(False, axis="x")

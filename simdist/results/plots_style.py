"""How every figure looks: safe for colour-blind eyes and in grey, with units, sized for a README, and repeatable.

Figures are made with the object interface, never with pyplot's global state; ``with_style`` holds the settings.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from simdist.results.tables import Run, rate_label

P = ParamSpec("P")
R = TypeVar("R")

WIDTH = 6.2  # inches; about 800 pixels at DPI
DPI = 130
GREY = "#555555"

_RC: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that every machine draws the same
    "font.size": 9.5,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.7,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "legend.frameon": False,
    "legend.handlelength": 4.6,
    "legend.columnspacing": 1.6,
    "lines.linewidth": 1.9,
    "lines.markersize": 5.5,
    "hatch.linewidth": 0.7,
    "text.parse_math": False,  # a dollar sign in a folder name is a dollar sign
    "svg.hashsalt": "simdist",
    "svg.fonttype": "path",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


def with_style(draw: Callable[P, R]) -> Callable[P, R]:
    """Run a drawing function under the house style, and leave the caller's settings alone."""

    @functools.wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> R:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_RC)
            return draw(*args, **kwargs)

    return styled


@dataclass(frozen=True)
class LineStyle:
    """What tells one line from another: colour, dashes and marker, each enough by itself."""

    color: str
    dashes: Any
    marker: str

    def keywords(self) -> dict[str, Any]:
        """Return keyword arguments for ``Axes.plot``."""
        hollow = self.marker in "sD"
        return {
            "color": self.color,
            "linestyle": self.dashes,
            "marker": self.marker,
            "markerfacecolor": "white" if hollow else self.color,
            "markeredgecolor": self.color,
        }


# Okabe and Ito's colours, ordered so that neighbours differ in lightness as well.
LINE_STYLES = (
    LineStyle("#0072B2", "-", "o"),
    LineStyle("#D55E00", (0, (5, 2)), "s"),
    LineStyle("#000000", (0, (1, 1.3)), "^"),
    LineStyle("#009E73", (0, (6, 1.6, 1.2, 1.6)), "D"),
    LineStyle("#CC79A7", (0, (9, 3)), "v"),
    LineStyle("#E69F00", (0, (3, 1.3, 1, 1.3, 1, 1.3)), "P"),
    LineStyle("#56B4E9", (0, (2, 2)), "X"),
    LineStyle("#666666", (0, (10, 2, 2, 2, 2, 2)), "*"),
)
BAR_STYLES = (
    ("#d6e8f5", ""),
    ("#74b3dc", "///"),
    ("#F0E442", "..."),
    ("#f2a57e", "\\\\\\"),
    ("#ffffff", "xxx"),
    ("#7fcfb7", "---"),
    ("#e3b7d0", "ooo"),
    ("#bbbbbb", "++"),
)


def line_styles(labels: Sequence[str]) -> dict[str, LineStyle]:
    """Give each run its style; the same runs in the same order look the same in every figure."""
    return {label: LINE_STYLES[index % len(LINE_STYLES)] for index, label in enumerate(labels)}


def new_figure(height: float, panels: int = 1) -> tuple[Figure, list[Axes]]:
    """Return an empty figure of the common width with panels side by side that share their y axis."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    axes = figure.subplots(1, panels, sharey=True, squeeze=False)
    return figure, list(axes[0])


def legend_above(figure: Figure, styles: Mapping[str, LineStyle], extra: Sequence[tuple[Any, str]] = ()) -> None:
    """Put the legend above the axes, where it hides no data."""
    entries: list[tuple[Any, str]] = [(Line2D([], [], **style.keywords()), label) for label, style in styles.items()]
    entries += list(extra)
    widest = max(len(text) for _, text in entries)
    columns = max(1, min(len(entries), int(92 / (widest + 10))))
    figure.legend(
        [handle for handle, _ in entries],
        [text for _, text in entries],
        loc="outside upper center",
        ncols=math.ceil(len(entries) / math.ceil(len(entries) / columns)),
    )


def loss_label(runs: Sequence[Run], kind: str) -> str:
    """Name the loss axis, with its unit where the workload has a known one."""
    names = {(run.scenario.get("workload") or {}).get("name") for run in runs}
    unit = " (nats per byte)" if names == {"byte_gpt"} else ""
    return f"{kind.capitalize()} loss{unit}"


def bandwidth_axis(axes: Axes, rates: Sequence[float]) -> None:
    """Make x a log axis of bandwidths with ticks such as ``10 Mbit/s``."""
    low, high = min(rates), max(rates)
    axes.set_xscale("log")
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    decades = [10.0**power for power in range(first, last + 1)]
    ticks = decades[:: max(1, math.ceil(len(decades) / 6))] if len(decades) >= 2 else sorted(set(rates))[:4]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: rate_label(value)))
    axes.xaxis.set_minor_locator(LogLocator(subs=tuple(range(2, 10))) if len(decades) >= 2 else NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    margin = (high / low) ** 0.03
    axes.set_xlim(low / margin, high * margin)
    axes.set_xlabel("Bandwidth per link (log)")


def log_ticks(axis: Axis, low: float, high: float, text: Callable[[float], str], most: int = 9) -> None:
    """Label a log axis with plain numbers, as many as fit, also where it spans less than a decade."""
    choices = [(1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)]
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for subs in choices:
        ticks = [digit * 10.0**power for power in powers for digit in subs if low <= digit * 10.0**power <= high]
        if len(ticks) <= most:
            break
    ticks = ticks[:: max(1, math.ceil(len(ticks) / most))]
    if len(ticks) < 2:
        ticks = [float(f"{value:.2g}") for value in np.geomspace(low * 1.02, high / 1.02, 3)]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axis.set_minor_locator(LogLocator(subs=tuple(range(2, 10))))
    axis.set_minor_formatter(NullFormatter())


def linear_ticks(axis: Axis, count: int) -> None:
    """Label a linear axis with at most ``count`` round numbers."""
    axis.set_major_locator(MaxNLocator(count))


def plain_number(value: float) -> str:
    """Write a tick value without powers of ten.

    >>> plain_number(0.05), plain_number(20000.0)
    ('0.05', '20,000')
    """
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


_SIZES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def size_scale(largest: float) -> tuple[float, str]:
    """Return the decimal unit that suits values up to ``largest`` bytes."""
    return next(((scale, unit) for scale, unit in _SIZES if largest >= scale), (1.0, "B"))


def size_label(size: float) -> str:
    """Write a size as people do.

    >>> size_label(2_000_000.0)
    '2 MB'
    """
    scale, unit = size_scale(size)
    return f"{size / scale:.3g} {unit}"


def marker_spacing(points: int) -> tuple[int, int]:
    """Return matplotlib's ``markevery`` (start, step) for about eight markers, the last one on the last point."""
    step = max(1, math.ceil(points / 8))
    return (points - 1) % step, step


@with_style
def save(figure: Figure, stem: Path, metadata: Mapping[str, Any] | None = None) -> tuple[Path, Path]:
    """Write ``stem.png`` and ``stem.svg`` without any time stamp; equal figures give equal files."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    png, svg = stem.with_suffix(".png"), stem.with_suffix(".svg")
    figure.savefig(png, dpi=DPI, metadata={"Software": None, **(metadata or {})})
    figure.savefig(svg, metadata={"Date": None, "Creator": "simdist", **(metadata or {})})
    return png, svg

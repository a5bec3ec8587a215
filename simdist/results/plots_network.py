"""What bandwidth does: time to the target loss, who wins where, and how much of the time goes to computing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from simdist.results.plots_points import Region, Target, Timings, crossovers, fastest
from simdist.results.plots_style import (
    BAR_STYLES,
    GREY,
    bandwidth_axis,
    legend_above,
    line_styles,
    log_ticks,
    new_figure,
    plain_number,
    with_style,
)
from simdist.results.tables import Run, rate_label


@with_style
def time_vs_bandwidth(runs: Sequence[Run], timed: Timings, target: Target) -> Figure:
    """Draw simulated seconds to the target loss over bandwidth, log-log, with the changes of the winner marked."""
    seconds = timed.seconds_to(target)
    labels = [run.label for run in runs if run.label in seconds]
    styles = line_styles([run.label for run in runs])
    figure, [axes] = new_figure(4.3)
    for label in labels:
        axes.plot(list(seconds[label]), list(seconds[label].values()), label=label, **styles[label].keywords())
    bandwidth_axis(axes, [rate for times in seconds.values() for rate in times])
    every = [value for times in seconds.values() for value in times.values()]
    margin = (max(every) / min(every)) ** 0.06 if max(every) > min(every) else 1.2
    low, high = min(every) / margin, max(every) * margin
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    log_ticks(axes.yaxis, low, high, plain_number)
    axes.set_ylabel(f"Simulated seconds to {target.kind} loss {target.loss:.3g} (log)")
    regions = fastest(seconds)
    _name_winners(axes, regions)
    _mark_crossovers(axes, seconds)
    legend_above(figure, {label: styles[label] for label in labels})
    return figure


def _name_winners(axes: Axes, regions: Sequence[Region]) -> None:
    """Write above the axes who is fastest in which span of bandwidths."""
    left, right = axes.get_xlim()
    for index, region in enumerate(regions):
        start, end = _place(region.low, left, right), _place(region.high, left, right)
        shade = "#e4e4e4" if index % 2 == 0 else "#f3f3f3"
        span = axes.axvspan(region.low, region.high, ymin=1.015, ymax=1.085, facecolor=shade, linewidth=0, gid="winner")
        span.set_clip_on(False)
        text = next((text for text in (f"{region.label} fastest", region.label) if _fits(text, end - start)), "")
        place = math.sqrt(region.low * region.high)
        axes.text(place, 1.046, text, transform=axes.get_xaxis_transform(), ha="center", va="center", fontsize=9)


def _mark_crossovers(axes: Axes, seconds: Mapping[str, Mapping[float, float]]) -> None:
    left, right = axes.get_xlim()
    for rate, _, winner in crossovers(seconds):
        # Lines fall from upper left to lower right, so the free corner is below on the left and above on the right.
        above = _place(rate, left, right) > 0.4
        axes.axvline(rate, color=GREY, linewidth=1.0, linestyle=(0, (4, 3)), zorder=0, gid="crossover")
        axes.annotate(
            f"above {rate_label(float(f'{rate:.2g}'))}: {winner}",
            (rate, 0.975 if above else 0.025),
            xycoords=axes.get_xaxis_transform(),
            xytext=(-2, 0),
            textcoords="offset points",
            rotation=90,
            fontsize=9,
            color="#333333",
            ha="right",
            va="top" if above else "bottom",
        )


def _place(rate: float, left: float, right: float) -> float:
    return math.log(rate / left) / math.log(right / left)


def _fits(text: str, width: float) -> bool:
    return len(text) * 0.0145 <= width  # a letter takes about one seventieth of the axes


@with_style
def utilisation_vs_bandwidth(runs: Sequence[Run], curves: Mapping[str, Mapping[float, float]]) -> Figure:
    """Draw the share of simulated time that goes to computing over bandwidth; the rest waits for the network.

    Args:
        runs: that are compared; they settle who looks how.
        curves: label to bandwidth in bit/s, ascending, to share.
    """
    styles = line_styles([run.label for run in runs])
    figure, [axes] = new_figure(3.7)
    shown = {label: _where_it_changes(curve) for label, curve in curves.items()}
    for label, curve in shown.items():
        marks: Any = _evenly(list(curve), 10)
        look: Any = {"label": label, "clip_on": False, "markevery": marks, **styles[label].keywords()}
        axes.plot(list(curve), list(curve.values()), **look)
    bandwidth_axis(axes, [rate for curve in shown.values() for rate in curve])
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    axes.set_ylabel("Share of time computing")
    legend_above(figure, {label: styles[label] for label in shown})
    return figure


def _evenly(rates: Sequence[float], count: int) -> list[int]:
    """Return the places of about so many rates that lie evenly on a log axis."""
    logs = np.log(rates)
    return sorted({int(np.abs(logs - at).argmin()) for at in np.linspace(logs[0], logs[-1], count)})


def _where_it_changes(curve: Mapping[float, float]) -> dict[float, float]:
    """Return a curve without the flat ends that go on for decades: one point of each is kept."""
    rates, shares = list(curve), list(curve.values())
    span = max(shares) - min(shares)
    moved = [at for at in range(1, len(rates)) if abs(shares[at] - shares[at - 1]) > 0.005 * span]
    if len(rates) <= 12 or not moved:
        return dict(curve)
    return {rate: curve[rate] for rate in rates[moved[0] - 1 : moved[-1] + 1]}


@with_style
def time_split(runs: Sequence[Run]) -> Figure:
    """Draw a bar per run: where the simulated seconds of an average step go, under the run's own network."""
    figure, [axes] = new_figure(1.5 + 0.42 * len(runs))
    busy, exposed, hidden = (
        np.nan_to_num(np.array([run.mean_seconds(name) for run in runs]))
        for name in ("compute_seconds", "exposed_comm_seconds", "hidden_comm_seconds")
    )
    longest = float((busy + exposed).max())
    scale, unit = next(((s, u) for s, u in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")) if longest >= s), (1e-9, "ns"))
    parts = {
        "computing": busy - hidden,
        "computing, traffic hidden": hidden,
        "exposed traffic": exposed,
    }
    places, ends = np.arange(len(runs)), np.zeros(len(runs))
    for (title, values), (color, hatch) in zip(parts.items(), BAR_STYLES, strict=False):
        axes.barh(
            places, values / scale, left=ends, height=0.62, label=title, facecolor=color, hatch=hatch,
            edgecolor="#222222", linewidth=0.7,
        )  # fmt: skip
        ends += values / scale
    for place, end in zip(places, ends, strict=True):
        axes.annotate(
            f"{end:.3g} {unit}", (end, place), xytext=(5, 0), textcoords="offset points", va="center", fontsize=9
        )
    axes.set_yticks(places, [run.label for run in runs])
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, ends.max() * 1.16)
    axes.set_xlabel(f"Simulated time per step ({unit})")
    figure.legend(loc="outside upper center", ncols=3, handlelength=2.2, handleheight=1.1)
    return figure

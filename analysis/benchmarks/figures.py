"""The figures: overhead and memory against the number of workers, beside peers; cost per worker up to 4,096."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from analysis.benchmarks.case import step_seconds
from simdist.results.plots_style import (
    LineStyle,
    legend_above,
    line_styles,
    log_ticks,
    new_figure,
    plain_number,
    save,
    with_style,
)

HEIGHT = 3.1
#: label -> workers -> value
Curves = dict[str, dict[int, float]]


def draw(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw every figure that the results have data for, as PNG and SVG, and return the PNGs."""
    found = []
    time, memory = overhead(results["cases"])
    if time:
        found.append(draw_overhead(time, memory, folder / "overhead"))
    scaling = results["cases"].get("cost_per_worker", {})
    if "rounds" in scaling:
        found.append(draw_scaling(scaling["rounds"], folder / "cost_per_worker"))
    return found


def overhead(cases: Mapping[str, Any]) -> tuple[Curves, Curves]:
    """Return step times over the plain loop's, and peak memory in bytes, from all cases that name points of them.

    A case does so by ``details["overhead"]``: rows of (label, workers, side, the plain loop's side).
    """
    time: Curves = {}
    memory: Curves = {}
    for label, workers, ratio, size in _points(cases):
        time.setdefault(label, {})[workers] = ratio
        memory.setdefault(label, {})[workers] = size
    return time, memory


def _points(cases: Mapping[str, Any]) -> Iterator[tuple[str, int, float, float]]:
    for entry in cases.values():
        rounds = entry.get("rounds", ())
        for label, workers, side, base in entry.get("details", {}).get("overhead", ()) if rounds else ():
            ratios = [step_seconds(found[side]) / step_seconds(found[base]) for found in rounds]
            sizes = [found[side]["peak_rss_bytes"] for found in rounds]
            yield label, workers, statistics.median(ratios), statistics.median(sizes)


@with_style
def draw_overhead(time: Curves, memory: Curves, stem: Path) -> Path:
    """Draw both against the number of emulated workers."""
    figure = new_figure(HEIGHT)[0]
    figure.clear()
    left, right = figure.subplots(1, 2)  # each its own scale
    styles = line_styles(list(time))
    _curves(left, time, styles)
    left.axhline(1.0, color="#333333", linewidth=0.9)
    left.set_title("Step time over a plain loop's", fontsize=10, loc="left")
    left.set_ylabel("same batch, same threads (log)")
    _curves(right, {label: {n: size / 1e9 for n, size in curve.items()} for label, curve in memory.items()}, styles)
    right.set_title("Peak memory of all processes", fontsize=10, loc="left")
    right.set_ylabel("GB (log)")
    legend_above(figure, styles)
    return save(figure, stem)[0]


@with_style
def draw_scaling(rounds: list[Mapping[str, Any]], stem: Path) -> Path:
    """Draw microseconds per worker and step, and the first step's, for both engines."""
    curves: Curves = {}
    for engine in rounds[0]:
        for key, what in (("step", "a step"), ("first_step", "the first step")):
            name = f"{key}_seconds_by_workers"
            curves[f"{engine}: {what}"] = {
                int(count): 1e6 * statistics.median(found[engine][name][count] for found in rounds) / int(count)
                for count in rounds[0][engine][name]
            }
    figure, (axes,) = new_figure(HEIGHT)
    styles = line_styles(list(curves))
    _curves(axes, curves, styles)
    axes.set_ylabel("Wall µs per worker (log)")
    legend_above(figure, styles)
    return save(figure, stem)[0]


def _curves(axes: Axes, curves: Curves, styles: Mapping[str, LineStyle]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    for label, curve in curves.items():
        workers = sorted(curve)
        axes.plot(workers, [curve[count] for count in workers], **styles[label].keywords())
    counts = sorted({count for curve in curves.values() for count in curve})
    shown = [count for place, count in enumerate(counts) if place == 0 or count >= 2 * counts[place - 1]]
    axes.set_xticks(shown, [f"{count:,}" for count in shown])
    axes.minorticks_off()
    axes.set_xlabel("Emulated workers (log)")
    values = [value for curve in curves.values() for value in curve.values()]
    low, high = min(values) / 1.25, max(values) * 1.25
    axes.set_ylim(low, high)
    log_ticks(axes.yaxis, low, high, plain_number)

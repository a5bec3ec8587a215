"""Loss against steps, against bytes sent, and against simulated seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from simdist.results.plots_points import LossKind, Timings, loss_curve, loss_kind, sent_per_worker, smooth
from simdist.results.plots_points import smoothing_window as window_of
from simdist.results.plots_style import (
    GREY,
    legend_above,
    line_styles,
    linear_ticks,
    log_ticks,
    loss_label,
    marker_spacing,
    new_figure,
    plain_number,
    size_label,
    with_style,
)
from simdist.results.tables import Column, Run, Steps, rate_label


@with_style
def loss_vs_steps(runs: Sequence[Run]) -> Figure:
    """Draw the compared loss as a bold line with markers, the training loss thin and faint."""
    kind = loss_kind(runs)
    figure, [axes] = new_figure(3.9)
    styles = line_styles([run.label for run in runs])
    for run in runs:
        train = run.steps["train_loss"]
        # Beside a validation curve the raw noise of every run would bury it, so the faint line is smoothed too.
        faint = smooth(train, window_of(len(train))) if kind == "validation" else train
        axes.plot(run.steps["step"], faint, color=styles[run.label].color, linewidth=0.8, alpha=0.4, zorder=1)
    _curves(axes, {run.label: run.steps for run in runs}, kind, lambda steps: steps["step"])
    axes.set_ylim(*loss_limits([run.steps for run in runs], kind))
    axes.set_xlim(left=0)
    axes.set_xlabel("Optimizer steps")
    axes.set_ylabel(loss_label(runs, kind if kind == "validation" else "training"))
    thin = Line2D([], [], color=GREY, linewidth=0.8, alpha=0.7)
    legend_above(
        figure,
        line_styles([run.label for run in runs]),
        [(thin, "thin: training loss" if kind == "validation" else "thin: each step")],
    )
    return figure


@with_style
def loss_vs_bytes(runs: Sequence[Run]) -> Figure:
    """Draw the compared loss over the bytes that one worker has sent so far (log)."""
    kind = loss_kind(runs)
    steps = {run.label: run.steps for run in runs}
    figure, [axes] = new_figure(3.9)
    _curves(axes, steps, kind, sent_per_worker)
    limits = loss_limits(list(steps.values()), kind)
    axes.set_ylim(*limits)
    low, high = _visible(steps, kind, sent_per_worker, limits[1])
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    log_ticks(axes.xaxis, low, high, size_label)
    axes.set_xlabel("Bytes sent per worker (log)")
    axes.set_ylabel(loss_label(runs, kind))
    legend_above(figure, line_styles([run.label for run in runs]))
    return figure


@with_style
def loss_vs_time(runs: Sequence[Run], timed: Timings) -> Figure:
    """Draw the compared loss over simulated seconds, a panel per bandwidth (lowest, middle, highest).

    Without bandwidths that all runs share there is one panel, with each run's own network. The time axes are
    logarithmic if the slowest run takes more than four times as long as the fastest.
    """
    kind = loss_kind(runs)
    panels: dict[str, Mapping[str, Steps]] = {
        rate_label(rate): {run.label: timed.steps[run.label][rate] for run in runs} for rate in timed.panels()
    }
    if not panels:
        panels = {"Each run under its own network": {run.label: run.steps for run in runs}}
    figure, all_axes = new_figure(3.5 if len(panels) > 1 else 3.9, len(panels))
    ends = [[steps["simulated_seconds"][-1] for steps in panel.values()] for panel in panels.values()]
    logarithmic = any(min(panel) > 0 and max(panel) > 4 * min(panel) for panel in ends)
    limits = loss_limits([run.steps for run in runs], kind)
    for axes, (title, panel) in zip(all_axes, panels.items(), strict=True):
        _curves(axes, panel, kind, _seconds)
        axes.set_title(title, fontsize=10)
        low, high = _visible(panel, kind, _seconds, limits[1])
        if logarithmic:
            axes.set_xscale("log")
            axes.set_xlim(low, high)
            log_ticks(axes.xaxis, low, high, plain_number, most=9 // len(panels) + 1)
        else:
            axes.set_xlim(0, high)
            linear_ticks(axes.xaxis, 9 // len(panels) + 1)
    all_axes[0].set_ylim(*limits)
    all_axes[0].set_ylabel(loss_label(runs, kind))
    figure.supxlabel("Simulated time (seconds, log)" if logarithmic else "Simulated time (seconds)", fontsize=10)
    legend_above(figure, line_styles([run.label for run in runs]))
    return figure


def loss_limits(steps: Sequence[Steps], kind: LossKind) -> tuple[float, float]:
    """Return y limits that give the room to where runs differ: the first tenth of training may lie above them."""
    late, lowest, highest = [], np.inf, -np.inf
    for one in steps:
        rows, losses = loss_curve(one, kind)
        keep = np.isfinite(losses)
        rows, losses = rows[keep], losses[keep]
        if len(losses) == 0:
            continue
        late.append(losses[rows >= 0.1 * (len(one["step"]) - 1)].max(initial=losses[-1]))
        lowest, highest = min(lowest, float(losses.min())), max(highest, float(losses.max()))
    if not late:
        return 0.0, 1.0
    top = min(highest, float(max(late)))
    room = max(top - lowest, 1e-3 * max(abs(top), 1e-9))
    return lowest - 0.05 * room, top + 0.05 * room


def _seconds(steps: Steps) -> Column:
    return steps["simulated_seconds"]


def _curves(axes: Axes, panel: Mapping[str, Steps], kind: LossKind, x: Callable[[Steps], Column]) -> None:
    styles = line_styles(list(panel))
    for label, steps in panel.items():
        rows, losses = loss_curve(steps, kind)
        axes.plot(
            x(steps)[rows],
            losses,
            label=label,
            markevery=marker_spacing(len(rows)),
            zorder=3,
            **styles[label].keywords(),
        )


def _visible(
    panel: Mapping[str, Steps], kind: LossKind, x: Callable[[Steps], Column], top: float
) -> tuple[float, float]:
    """Return x limits of a log axis from where a curve first comes into view to the end of the longest."""
    starts, ends = [], []
    for steps in panel.values():
        rows, losses = loss_curve(steps, kind)
        places = x(steps)[rows]
        shown = places[(losses <= top) & (places > 0)]
        starts.append(float(shown.min(initial=places[-1])))
        ends.append(float(places[-1]))
    low, high = min(starts), max(ends)
    margin = (high / low) ** 0.03 if high > low > 0 else 1.1
    return low / margin, high * margin

"""What the update rules log about themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from simdist.results.plots_style import legend_above, line_styles, marker_spacing, new_figure, with_style
from simdist.results.tables import Column, Run


def has_nu(run: Run) -> bool:
    """Say whether the run logged nu for some matrix."""
    nu = run.diagnostics.get("nu")
    return nu is not None and bool(np.isfinite(nu).any())


def over_matrices(run: Run, name: str) -> tuple[Column, Column, Column, Column]:
    """Return (steps, mean, smallest, largest), each [logged steps], of a diagnostic over the matrices of a step."""
    steps, values = run.diagnostics["step"], run.diagnostics[name]
    keep = np.isfinite(values)
    steps, values = steps[keep], values[keep]
    at = np.unique(steps)
    rows = [values[steps == step] for step in at]
    mean, low, high = (np.array([f(row) for row in rows], dtype=np.float64) for f in (np.mean, np.min, np.max))
    return at, mean, low, high


@with_style
def nu_vs_steps(runs: Sequence[Run]) -> Figure:
    """Draw nu, the spectral norm of the update direction: its mean over matrices in a band from least to most."""
    styles = line_styles([run.label for run in runs])
    figure, [axes] = new_figure(3.7)
    shown = [run for run in runs if has_nu(run)]
    for run in shown:
        at, mean, low, high = over_matrices(run, "nu")
        style = styles[run.label]
        axes.fill_between(at, low, high, color=style.color, alpha=0.18, linewidth=0)
        axes.plot(at, mean, label=run.label, markevery=marker_spacing(len(at)), **style.keywords())
    axes.set_xlabel("Optimizer steps")
    axes.set_ylabel("ν: spectral norm of the update\n(mean over matrices; band: least to most)")
    legend_above(figure, {run.label: styles[run.label] for run in shown})
    return figure


def drifts(run: Run) -> list[str]:
    """Return the columns that say how far workers' own memories are apart, where some of it is finite and not zero."""
    found = {name: values for name, values in run.diagnostics.items() if name.endswith("_drift")}
    return [name for name, values in found.items() if bool((np.isfinite(values) & (values > 0)).any())]


@with_style
def drift_vs_steps(runs: Sequence[Run]) -> Figure:
    """Draw how far workers' own memories (error feedback, decoupled momentum) are from their mean, relative to it."""
    shown = [(run, name) for run in runs for name in drifts(run)]
    several = len({name for _, name in shown}) > 1

    def label(run: Run, name: str) -> str:
        return f"{run.label}: {name.removesuffix('_drift').replace('_', ' ')}" if several else run.label

    styles = line_styles([label(run, name) for run, name in shown])
    figure, [axes] = new_figure(3.7)
    for run, name in shown:
        at, mean, _, _ = over_matrices(run, name)
        style = styles[label(run, name)]
        axes.plot(at, mean, label=label(run, name), markevery=marker_spacing(len(at)), **style.keywords())
    axes.set_xlabel("Optimizer steps")
    axes.set_ylabel("Deviation of workers' memories\nfrom their mean, relative to it")
    axes.set_ylim(bottom=0)
    legend_above(figure, styles)
    return figure

"""Figures of the study, in the house style of simdist; each is a function of the entries that were read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.orth_dion_verdict.plan import MEMORIES, RANKS, TEACHERS
from analysis.orth_dion_verdict.statistics import Entry, Interval, gap
from simdist.results.plots_style import (
    GREY,
    legend_above,
    line_styles,
    log_ticks,
    new_figure,
    plain_number,
    with_style,
)

Entries = Mapping[tuple[str, str], Entry]
FACTORS = ("colnorm", "qr_raw", "qr_pos", "polar", "exact_svd")
STYLES = line_styles(FACTORS)
#: names that need no legend beside Orth-Dion's right factors
REFERENCES = {"Muon": ("-.", "Muon"), "AdamW": (":", "AdamW")}


def _whisker(axes: Axes, x: float, found: Interval, factor: str) -> None:
    half = found.half if math.isfinite(found.half) else 0.0
    style = STYLES[factor].keywords() | {"linestyle": "none"}
    axes.errorbar([x], [found.mean], yerr=[half], capsize=3, elinewidth=1.3, **style)


def _grey_line(dashes: Any, width: float = 1.4) -> Line2D:
    return Line2D([], [], color=GREY, linestyle=dashes, linewidth=width)


def _finite(entry: Entry | None) -> Interval | None:
    if entry is None:
        return None
    found = Interval.of(list(entry.at_best().values()))
    return found if math.isfinite(found.mean) else None


@with_style
def loss_by_factor(entries: Entries) -> Figure:
    """Final loss of every right factor at its best learning rate, by rank; a panel per memory."""
    figure, panels = new_figure(4.0, len(MEMORIES))
    for axes, memory in zip(panels, MEMORIES, strict=True):
        for offset, factor in enumerate(FACTORS):
            for at, rank in enumerate(RANKS):
                found = _finite(entries.get(("small", f"{factor}, {memory}, r = {rank:g} d")))
                if found:
                    _whisker(axes, at + 0.16 * (offset - 2), found, factor)
        for name, (dashes, _) in REFERENCES.items():
            if found := _finite(entries.get(("small", name))):
                axes.axhline(found.mean, color=GREY, linestyle=dashes, linewidth=1.4)
        axes.set_xticks(range(len(RANKS)), [f"d/{1 / rank:g}" for rank in RANKS])
        axes.set_xlim(-0.6, len(RANKS) - 0.4)
        axes.grid(visible=False, axis="x")
        axes.set_title(memory, fontsize=9.5)
        axes.set_xlabel("Rank")
    panels[0].set_ylabel("Final validation loss\n(nats per byte; whiskers: 95 % over seeds)")
    lines = [(_grey_line(dashes), text) for dashes, text in REFERENCES.values()]
    legend_above(figure, STYLES, lines)
    return figure


@with_style
def loss_by_lr(entries: Entries) -> Figure:
    """Loss against learning rate under seed 0 at r = d/4; what diverged is left out."""
    memories = list(MEMORIES)[:2]
    figure, panels = new_figure(3.8, len(memories))
    shown = []
    for axes, memory in zip(panels, memories, strict=True):
        for factor in FACTORS:
            entry = entries.get(("small", f"{factor}, {memory}, r = 0.25 d"))
            points = sorted((lr, loss) for (lr, seed), loss in entry.losses.items() if seed == 0) if entry else []
            points = [(lr, loss) for lr, loss in points if math.isfinite(loss)]
            shown += points
            axes.plot([lr for lr, _ in points], [loss for _, loss in points], **STYLES[factor].keywords())
        axes.set_xscale("log")
        axes.set_title(f"{memory}, r = d/4", fontsize=9.5)
        axes.set_xlabel("Learning rate (log)")
    for axes in panels:
        rates = [lr for lr, _ in shown]
        log_ticks(axes.xaxis, min(rates, default=0.01), max(rates, default=0.1), plain_number, most=5)
    panels[0].set_ylabel("Final validation loss\n(nats per byte, seed 0)")
    legend_above(figure, STYLES)
    return figure


@with_style
def nu_over_time(entries: Entries) -> Figure:
    """Dion's nu over the steps, mean over matrices and seeds, in a band up to the largest of any matrix."""
    figure, panels = new_figure(3.6, len(RANKS))
    kinds = line_styles(["colnorm, EF-C 0.05", "colnorm, EF-P 1", "qr_pos, EF-P 1"])
    for axes, rank in zip(panels, RANKS, strict=True):
        for name, look in kinds.items():
            entry = entries.get(("small", f"{name}, r = {rank:g} d"))
            if entry is None:
                continue
            seeds = list(entry.at_best())
            steps = entry.measured(seeds[0], "nu_mean")[0]
            means = [entry.measured(seed, "nu_mean")[1] for seed in seeds]
            most = [entry.measured(seed, "nu_max")[1] for seed in seeds]
            if not steps or {len(row) for row in means + most} != {len(steps)}:
                continue
            mean, high = np.mean(means, axis=0), np.max(most, axis=0)
            axes.fill_between(steps, mean, high, color=look.color, alpha=0.15, linewidth=0)
            axes.plot(steps, mean, markevery=max(1, len(steps) // 5), **look.keywords())
        axes.set_title(f"r = d/{1 / rank:g}", fontsize=9.5)
        axes.set_xlabel("Optimizer steps")
    panels[0].set_ylabel("ν: spectral norm of the update\n(mean over matrices; band: to the largest)")
    legend_above(figure, kinds)
    return figure


@with_style
def gap_by_nu(entries: Entries) -> Figure:
    """What orthonormalising gains against the square of the nu that it removes."""
    figure, [axes] = new_figure(3.8)
    looks = dict(zip(("EF-P 1", "EF-C 0.05", "EF-C 0.3", "large model"), list(STYLES.values()), strict=False))
    for (study, label), entry in entries.items():
        factor, _, rest = label.partition(", ")
        other = entries.get((study, f"qr_pos, {rest}"))
        if factor != "colnorm" or other is None or study not in ("small", "large") or not entry.column("nu_mean"):
            continue
        kind = "large model" if study == "large" else rest.partition(", ")[0]
        if kind not in looks:
            continue
        found, nu = gap(entry, other), Interval.of([value**2 for value in entry.column("nu_mean")])
        keywords = looks[kind].keywords() | {"linestyle": "none"}
        half = found.half if math.isfinite(found.half) else 0.0
        axes.errorbar([nu.mean], [found.mean], yerr=[half], capsize=3, elinewidth=1.3, **keywords)
    axes.axhline(0, color=GREY, linewidth=1)
    axes.set_xlabel("Square of the mean ν of column normalisation")
    axes.set_ylabel("Final loss, colnorm minus QR\n(nats per byte; above 0: QR is better)")
    legend_above(figure, looks)
    return figure


@with_style
def teacher_nu(entries: Entries) -> Figure:
    """Nu of column normalisation on known spectra against the worst case sqrt(r) and against pure noise."""
    figure, [axes] = new_figure(3.8)
    styles = line_styles(list(TEACHERS))
    ranks = np.geomspace(4, 32, 40)
    for name in TEACHERS:
        points = []
        for rank in (4, 8, 32):
            entry = entries.get((f"teacher: {name}", f"colnorm, r = {rank}"))
            if entry and entry.column("nu_mean"):
                points.append((rank, Interval.of(entry.column("nu_mean")).mean))
        axes.plot([rank for rank, _ in points], [nu for _, nu in points], **styles[name].keywords())
    axes.plot(ranks, np.sqrt(ranks), color=GREY, linestyle="-", linewidth=1.2)
    axes.plot(ranks, 1 + np.sqrt(ranks / 64), color=GREY, linestyle=":", linewidth=1.6)
    axes.set_xscale("log")
    axes.set_yscale("log")
    log_ticks(axes.xaxis, 4, 32, plain_number)
    axes.set_xticks([4, 8, 16, 32], ["4", "8", "16", "32"])
    axes.minorticks_off()
    log_ticks(axes.yaxis, 1, 6, plain_number)
    axes.set_xlabel("Rank r (log)")
    axes.set_ylabel("ν of column normalisation,\nmean over steps and matrices (log)")
    references = {"worst case √r": ("-", 1.2), "pure noise 1 + √(r/m)": (":", 1.6)}
    lines = [(_grey_line(dashes, width), text) for text, (dashes, width) in references.items()]
    legend_above(figure, styles, lines)
    return figure


@with_style
def beta_sweep(entries: Entries) -> Figure:
    """Final loss against beta_c = 1 - mu at r = d/4, each point at its best learning rate; beta 1 is EF-P 1 as well."""
    figure, [axes] = new_figure(3.6)
    shown = {name: STYLES[name] for name in ("colnorm", "qr_pos")}
    betas = {0.02: "EF-C 0.02", 0.05: "EF-C 0.05", 0.1: "EF-C 0.1", 0.3: "EF-C 0.3", 0.6: "EF-C 0.6", 1.0: "EF-P 1"}
    for factor, style in shown.items():
        points = [
            (beta, found)
            for beta, memory in betas.items()
            if (found := _finite(entries.get(("small", f"{factor}, {memory}, r = 0.25 d"))))
        ]
        x, y = [beta for beta, _ in points], [found.mean for _, found in points]
        halves: Sequence[float] = [found.half if math.isfinite(found.half) else 0.0 for _, found in points]
        axes.errorbar(x, y, yerr=halves, capsize=3, elinewidth=1.3, **style.keywords())
    axes.set_xscale("log")
    axes.set_xticks(list(betas), [f"{beta:g}\n(μ {1 - beta:.2g})" for beta in betas])
    axes.minorticks_off()
    axes.set_xlabel("β, the share of what was captured that is cleared (log)\n(μ = 1 - β, Dion's momentum)")
    axes.set_ylabel("Final validation loss\n(nats per byte; 95 % over seeds)")
    legend_above(figure, shown)
    return figure


def draw_all(entries: Entries) -> dict[str, Figure]:
    """Return every figure by the name of its file."""
    return {
        "loss_by_factor": loss_by_factor(entries),
        "loss_by_lr": loss_by_lr(entries),
        "nu_over_time": nu_over_time(entries),
        "gap_by_nu": gap_by_nu(entries),
        "teacher_nu": teacher_nu(entries),
        "beta_sweep": beta_sweep(entries),
    }

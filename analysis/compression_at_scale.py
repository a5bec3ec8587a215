"""Step time against bandwidth for planned models: one panel per number of workers, one line per method.

    python analysis/compression_at_scale.py PLANS... [--out DIR]

PLANS are folders that `simdist plan --out` wrote, with re-timings (`simdist retime`): scenarios/compression_at_scale.py
has the commands. Writes ``step_time_vs_bandwidth`` (PNG, SVG and CSV) and prints a Markdown table.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from simdist.results.plots import save
from simdist.results.plots_style import (
    bandwidth_axis,
    legend_above,
    line_styles,
    log_ticks,
    new_figure,
    plain_number,
    with_style,
)
from simdist.results.tables import Run, find_runs, rate_label

#: method -> workers -> bandwidth in bit/s -> seconds of a step
Curves = Mapping[str, Mapping[int, Mapping[float, float]]]

_TITLES = {"adamw": "AdamW", "muon": "Muon", "dion": "Dion", "orth_dion": "Orth-Dion"}


def method(scenario: Mapping[str, Any]) -> str:
    """Name a method by its rule, rank and compression between replicas."""
    rule, compression = scenario["optimizer"], scenario["compression"]["replicas"]
    name: str = _TITLES.get(rule["name"], rule["name"])
    if rule.get("rank_fraction"):
        name += f", r = d/{1 / rule['rank_fraction']:g}"
    if compression:
        name += f", {compression.get('codec', compression['name'])}"
        name += " with error feedback" if compression["name"] == "error_feedback" else ""
    return name


def workers(run: Run) -> int:
    """Return the size of a run's mesh."""
    mesh = run.scenario["mesh"]
    return int(mesh["replicas"] * mesh["shards"])


def curves(runs: Sequence[Run]) -> dict[str, dict[int, dict[float, float]]]:
    """Return the step times of every plan and its re-timings."""
    found: dict[str, dict[int, dict[float, float]]] = {}
    for run in runs:
        times = found.setdefault(method(run.scenario), {}).setdefault(workers(run), {})
        for one in run.retimed:
            times[one.bandwidth] = float(one.steps["simulated_seconds"][-1]) / len(one.steps["step"])
    return found


@with_style
def figure_of(found: Curves) -> Figure:
    """Draw step time over bandwidth."""
    sizes = sorted({size for by_size in found.values() for size in by_size})
    figure, panels = new_figure(3.7, len(sizes))
    styles = line_styles(list(found))
    every = [seconds for by_size in found.values() for times in by_size.values() for seconds in times.values()]
    rates = [rate for by_size in found.values() for times in by_size.values() for rate in times]
    for axes, size in zip(panels, sizes, strict=True):
        for name, by_size in found.items():
            times = sorted(by_size.get(size, {}).items())
            axes.plot([rate for rate, _ in times], [seconds for _, seconds in times], **styles[name].keywords())
        axes.set_yscale("log")
        axes.set_title(f"{size:,} workers", fontsize=10)
        bandwidth_axis(axes, rates)
        axes.set_xlabel("")
        axes.tick_params(axis="x", labelsize=8, rotation=35)
    low, high = min(every) / 1.15, max(every) * 1.15
    panels[0].set_ylim(low, high)
    log_ticks(panels[0].yaxis, low, high, plain_number)
    panels[0].set_ylabel("Simulated time of a step (s, log)")
    figure.supxlabel("Bandwidth of a GPU's network card (log)", fontsize=10)
    legend_above(figure, styles)
    return figure


def main(arguments: list[str] | None = None) -> None:
    """Draw the figure into ``--out``, write its numbers, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("plans", nargs="+", type=Path, help="folders of `simdist plan --out`, with re-timings")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder for the figure and its numbers")
    given = parser.parse_args(arguments)

    found = curves(find_runs(given.plans))
    if not any(times for by_size in found.values() for times in by_size.values()):
        parser.error("these plans have no re-timings: simdist retime PLAN --over network.bandwidth=...")
    stem = given.out / "step_time_vs_bandwidth"
    save(figure_of(found), stem)
    rows = [
        (name, size, rate, seconds)
        for name, by_size in found.items()
        for size, times in sorted(by_size.items())
        for rate, seconds in sorted(times.items())
    ]
    with stem.with_suffix(".csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "workers", "bandwidth_bit_per_second", "step_seconds"])
        writer.writerows(rows)
    rates = sorted({rate for _, _, rate, _ in rows})
    print("| method | workers | " + " | ".join(rate_label(rate) for rate in rates) + " |")
    print("| --- | ---: |" + " ---: |" * len(rates))
    for name, by_size in found.items():
        for size, times in sorted(by_size.items()):
            cells = [f"{times[rate]:.3g}" if rate in times else "" for rate in rates]
            print(f"| {name} | {size:,} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()

"""Bandwidth against convergence: the figures, a Markdown table, and the numbers behind them.

    python analysis/bandwidth_vs_convergence.py RUNS... [--out DIR] [--target LOSS]

RUNS are run or sweep folders with re-timings (`simdist retime RUN --over network.bandwidth=...`).
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

from simdist.results.plots import draw_all, save
from simdist.results.report import compare, data, table, winners


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """Lay out a table for a README."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def main(arguments: list[str] | None = None) -> None:
    """Draw the figures into ``--out`` and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run or sweep folders")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder for figures and data")
    parser.add_argument("--target", type=float, help="loss to time the runs to (default: the worst final loss)")
    given = parser.parse_args(arguments)

    comparison = compare(given.runs, given.target)
    given.out.mkdir(parents=True, exist_ok=True)
    for drawn in draw_all(comparison.shown, comparison.timed, comparison.target):
        if drawn.figure is None:
            print(f"left out {drawn.name}: {drawn.reason}")
        else:
            save(drawn.figure, given.out / drawn.name)

    numbers = data(comparison)
    (given.out / "time_to_target.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    with (given.out / "time_to_target.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "bandwidth_bit_per_second", "simulated_seconds_to_target"])
        for label, times in numbers["seconds_to_target"].items():
            writer.writerows([label, rate, seconds] for rate, seconds in times.items())

    print(markdown(*table(comparison)), end="\n\n")
    rows = [
        [run.label, purpose, axis or "point to point", f"{sent / 1e3:.1f}"]
        for run in comparison.shown
        for (purpose, axis), sent in run.bytes_by_purpose.items()
    ]
    print(markdown(["run", "purpose", "axis", "kB per worker and step"], rows), end="\n\n")
    for run in comparison.shown:
        if "nu" in run.diagnostics:
            means = [run.diagnostics["nu"][run.diagnostics["step"] == s].mean() for s in set(run.diagnostics["step"])]
            print(f"{run.label}: nu, mean over matrices, from {min(means):.2f} to {max(means):.2f} over the steps")
    leads = [list(row) for row in winners(comparison)]
    if leads:
        print(markdown(["bandwidth", "fastest", "simulated time to target", "lead"], leads), end="\n\n")
    print(f"Target: {comparison.target.kind} loss {comparison.target.loss:.4g}, {comparison.target.rule}.")


if __name__ == "__main__":
    main()

"""``python -m analysis.fidelity.simgrid [--measure]``: our times of random flows against SimGrid's.

Prints the committed table, and exits with 1 if it misses the target; ``--measure`` runs both simulators (some minutes)
and writes the table anew.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import numpy as np

from analysis.fidelity.simgrid.compare import LAZY, deviations, networks, play_here, play_there, random_flows, why_not

TABLE = Path(__file__).parent / "data" / "simgrid.csv"
#: largest relative deviation of a flow's duration, where the models are the same
TARGET = 0.01
#: (flows, seconds over which they start)
LOADS = ((10, 0.0), (100, 0.0), (100, 1.0), (1000, 0.0), (1000, 5.0))
SEEDS = (1, 2)
LATENCIES = (0.0, 1e-4)


def measure() -> list[dict[str, str]]:
    """Run every case with both simulators."""
    rows = []
    for latency in LATENCIES:
        for name, network in networks(latency).items():
            alike = len({network.route(0, other).latency for other in range(1, network.workers)}) == 1
            for count, spread in LOADS:
                for seed in SEEDS:
                    flows = random_flows(network, count, spread, seed)
                    ours, theirs = play_here(network, flows), play_there(network, flows)
                    lazy = play_there(network, flows, LAZY)
                    apart, lazily = (np.abs(deviations(flows, ours, other)) for other in (theirs, lazy))
                    rows.append(
                        {
                            "topology": name,
                            "link_latency": f"{latency:g}",
                            "same_model": "yes" if alike else "no",
                            "flows": str(count),
                            "start_within_seconds": f"{spread:g}",
                            "seed": str(seed),
                            "max_deviation": f"{apart.max():.2e}",
                            "median_deviation": f"{np.median(apart):.2e}",
                            "max_deviation_of_lazy": f"{lazily.max():.2e}",
                            "messages_per_cpu_second": f"{count / ours.cpu_seconds:.0f}",
                            "simgrid_messages_per_cpu_second": f"{count / theirs.cpu_seconds:.0f}",
                            "simgrid_lazy_messages_per_cpu_second": f"{count / lazy.cpu_seconds:.0f}",
                        }
                    )
                    print(*rows[-1].values(), sep="\t", flush=True)
    return rows


def summary(rows: list[dict[str, str]]) -> tuple[list[str], bool]:
    """Return the lines of the table by topology and latency, and whether the target is met."""
    lines = ["topology    latency      model  max apart   median  messages per CPU s: here  SimGrid"]
    met = True
    for latency in dict.fromkeys(row["link_latency"] for row in rows):
        for name in dict.fromkeys(row["topology"] for row in rows):
            own = [row for row in rows if (row["topology"], row["link_latency"]) == (name, latency)]
            same = own[0]["same_model"] == "yes"
            worst = max(float(row["max_deviation"]) for row in own)
            middle = np.median([float(row["median_deviation"]) for row in own])
            met &= worst <= TARGET or not same
            here, there = (
                np.median([float(row[key]) for row in own])
                for key in ("messages_per_cpu_second", "simgrid_messages_per_cpu_second")
            )
            lines.append(
                f"{name:<11}{float(latency) * 1e6:>6.0f} us{'same' if same else 'different':>11}"
                f"{worst:>11.1e}{middle:>9.1e}{here:>25.0f}{there:>9.0f}"
            )
    return lines, met


def main() -> int:
    parser = argparse.ArgumentParser(description="Our times of random flows against SimGrid's.")
    parser.add_argument("--measure", action="store_true", help="run both simulators and write the table anew")
    if parser.parse_args().measure:
        if reason := why_not():
            print(f"{reason}; without --measure the committed table is shown", file=sys.stderr)
            return 2
        rows = measure()
        TABLE.parent.mkdir(exist_ok=True)
        with TABLE.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    with TABLE.open(encoding="utf-8", newline="") as file:
        lines, met = summary(list(csv.DictReader(file)))
    print(*lines, sep="\n")
    print(f"target: at most {TARGET:.0%} apart where the model is the same: {'met' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())

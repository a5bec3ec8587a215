"""``python -m analysis.fidelity [--measure]``: all comparisons, one after the other (``make fidelity``).

SimGrid on random flows, gloo collectives and training steps on throttled links. Without ``--measure`` the committed
measurements are predicted anew and judged; with it, what is missing is measured first (root, and python3-simgrid).
Exit status 1 if a target is missed by a case that is not listed here with its reason.
"""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PARTS = ("simgrid", "real_links", "training")
#: the largest error of a case of 256 KiB and more that issue 4 allows
WORST = 0.10
#: (part, what, hosts, KiB or method, Mbit/s) of the cases beyond it, and why
KNOWN = {
    ("real_links", "broadcast", "8", "256 KiB", "500"): "three copies of a dozen pieces each share a link unevenly",
    ("real_links", "all_gather", "4", "256 KiB", "500"): "4 ms long, and the processors are busy for 96 % of it",
    ("real_links", "all_gather", "3", "256 KiB", "500"): "4 ms long, and the processors are busy for 67 % of it",
    (
        "real_links",
        "all_reduce",
        "2",
        "256 KiB",
        "500",
    ): "5 ms long; a message's overhead also holds a call's start",
    ("training", "step", "4", "fsdp", "500"): "CPU-bound: gloo's own work on bytes is not in the compute profile",
}
Case = tuple[str, str, str, str, str]


def main() -> int:
    for part in PARTS:
        print(f"\n== {part} ==", flush=True)
        done = subprocess.run([sys.executable, "-m", f"analysis.fidelity.{part}", *sys.argv[1:]], check=False)
        if done.returncode not in (0, 1):
            return done.returncode
    found = {**_collectives(), **_steps()}
    beyond = {case: error for case, error in found.items() if abs(error) > WORST}
    print(f"\n== worst cases: {len(beyond)} of {len(found)} beyond {WORST:.0%} ==")
    for case, error in sorted(beyond.items(), key=lambda item: -abs(item[1])):
        print(f"  {error:+.1%} {' '.join(case)} Mbit/s: {KNOWN.get(case, 'NOT KNOWN')}")
    return 1 if beyond.keys() - KNOWN.keys() else 0


def _collectives() -> dict[Case, float]:
    with (HERE / "real_links" / "data" / "real_links.csv").open(encoding="ascii", newline="") as file:
        return {
            (
                "real_links",
                row["op"],
                row["members"],
                f"{int(row['payload_bytes']) // 1024} KiB",
                str(int(row["rate_bits"]) // 10**6),
            ): float(row["error"])
            for row in csv.DictReader(file)
            if int(row["payload_bytes"]) >= 256 * 1024
        }


def _steps() -> dict[Case, float]:
    with (HERE / "training" / "training.csv").open(encoding="utf-8", newline="") as file:
        return {
            ("training", "step", row["hosts"], row["method"], row["Mbit/s"]): float(row["error"].rstrip("%")) / 100
            for row in csv.DictReader(file)
        }


if __name__ == "__main__":
    sys.exit(main())

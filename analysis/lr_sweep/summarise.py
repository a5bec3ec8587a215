"""From the learning-rate sweep to ``results.csv`` and a Markdown table.

python analysis/lr_sweep/summarise.py runs/lr_sweep
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from simdist.results.tables import find_runs

COLUMNS = ("optimizer", "error_feedback", "lr", "final_val_loss", "final_train_loss", "steps", "params_sha256")


def main(folders: list[str]) -> None:
    """Write ``results.csv`` beside this file and print the best learning rate of each contestant."""
    rows = []
    for run in find_runs([Path(folder) for folder in folders]):
        optimizer = run.scenario["optimizer"]
        rows.append(
            {
                "optimizer": optimizer["name"],
                "error_feedback": optimizer.get("error_feedback", ""),
                "lr": optimizer["lr"],
                **{name: run.summary[name] for name in COLUMNS[3:]},
            }
        )
    rows.sort(key=lambda row: (row["optimizer"], row["error_feedback"], row["lr"]))
    with (Path(__file__).parent / "results.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    print("| optimizer | error feedback | " + "lr: final validation loss |")
    print("| --- | --- | --- |")
    for key in dict.fromkeys((row["optimizer"], row["error_feedback"]) for row in rows):
        mine = [row for row in rows if (row["optimizer"], row["error_feedback"]) == key]
        best = min(mine, key=lambda row: float(row["final_val_loss"]))
        cells = [
            ("**{:g}: {:.3f}**" if row is best else "{:g}: {:.3f}").format(row["lr"], row["final_val_loss"])
            for row in mine
        ]
        print(f"| {key[0]} | {key[1]} | {', '.join(cells)} |")


if __name__ == "__main__":
    main(sys.argv[1:])

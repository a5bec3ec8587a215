"""``python -m analysis.fidelity.training`` predicts the committed measurements; ``--measure`` takes missing ones first.

Prints the table, writes it to ``training.csv`` and draws ``training.png``, all beside this file. Exit status: 0 all
targets met, 1 one is missed, 2 this machine cannot measure, 3 a measurement failed.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

from analysis.fidelity.training.figure import draw
from analysis.fidelity.training.judging import HEADINGS, cells, judge, text_table
from analysis.fidelity.training.measure import measure, read_cases
from analysis.fidelity.training.predict import predict
from simdist.errors import InputError, RunError

HERE = Path(__file__).parent


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m analysis.fidelity.training", description=__doc__)
    parser.add_argument("--measure", action="store_true", help="measure what is missing first: root, twenty minutes")
    if parser.parse_args().measure:
        try:
            measure()
        except (InputError, RunError) as error:
            print(error, file=sys.stderr)
            return 2 if isinstance(error, InputError) else 3
    predictions = [predict(case) for case in read_cases() if case.launches]
    lines, met = judge(predictions)
    print(text_table(predictions), *lines, sep="\n")
    with (HERE / "training.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([HEADINGS, *map(cells, predictions)])
    draw(predictions, HERE / "training.png")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())

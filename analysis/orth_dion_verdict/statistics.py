"""From ``results.csv`` and ``curves.csv`` to what the tables and figures show: best learning rates, means, intervals.

Comparisons are paired by seed, as a seed fixes start, data and order. An interval is Student's 95 % over the seeds:
with three of them 2.48 standard deviations wide on either side, so that little is claimed from little.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from analysis.orth_dion_verdict.plan import GRID, best_lr

#: two-sided 95 % quantiles of Student's t by degrees of freedom
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


@dataclass(frozen=True)
class Interval:
    """A mean with its spread; ``half`` is half the 95 % interval, nan for a single value."""

    mean: float
    half: float
    count: int

    @staticmethod
    def of(values: Sequence[float]) -> Interval:
        """Return mean and interval of values over seeds.

        >>> Interval.of([1.0, 2.0, 3.0])
        Interval(mean=2.0, half=2.484338..., count=3)
        """
        count = len(values)
        if not count:
            return Interval(math.nan, math.nan, 0)
        mean = math.fsum(values) / count
        if count == 1 or not math.isfinite(mean):
            return Interval(mean, math.nan, count)
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
        return Interval(mean, _T.get(count - 1, 1.96) * deviation / math.sqrt(count), count)

    @property
    def clear(self) -> bool:
        """Whether zero lies outside the interval."""
        return abs(self.mean) > self.half

    def text(self, digits: int = 3) -> str:
        """Write as ``1.234 ± 0.012``."""
        if not self.count:
            return "-"
        if not math.isfinite(self.mean):
            return "diverged"
        half = f" ± {self.half:.{digits}f}" if math.isfinite(self.half) else ""
        return f"{self.mean:.{digits}f}{half}"


@dataclass(eq=False)
class Entry:
    """All runs of one contestant.

    Attributes:
        rows: (lr, seed) -> its line of ``results.csv``.
        curves: (lr, seed) -> its lines of ``curves.csv``, in order of steps.
    """

    study: str
    label: str
    rows: dict[tuple[float, int], dict[str, str]] = field(default_factory=dict)
    curves: dict[tuple[float, int], list[dict[str, str]]] = field(default_factory=dict)

    @property
    def losses(self) -> dict[tuple[float, int], float]:
        """(lr, seed) -> final validation loss, inf where the run diverged."""
        return {
            point: float(row["final_val_loss"]) if row["status"] == "done" else math.inf
            for point, row in self.rows.items()
        }

    @property
    def best(self) -> float:
        """The best learning rate."""
        return best_lr(self.losses)

    @property
    def on_edge(self) -> bool:
        """Whether the best learning rate is an end of the grid, so that a better one may lie beyond."""
        return self.best in (GRID[0], GRID[-1])

    @property
    def diverged(self) -> int:
        """How many runs diverged, at any learning rate."""
        return sum(row["status"] != "done" for row in self.rows.values())

    def at_best(self) -> dict[int, float]:
        """Return seed -> final validation loss at the best learning rate."""
        return {seed: loss for (lr, seed), loss in sorted(self.losses.items()) if lr == self.best}

    def column(self, name: str) -> list[float]:
        """Return a column at the best learning rate, by seed; empty where it was not measured."""
        found = [row.get(name, "") for (lr, _), row in sorted(self.rows.items()) if lr == self.best]
        return [float(value) for value in found if value]

    def command(self) -> str:
        """Return the command of the first seed at the best learning rate."""
        return next(row["command"] for (lr, _), row in sorted(self.rows.items()) if lr == self.best)

    def measured(self, seed: int, name: str) -> tuple[list[int], list[float]]:
        """Return (steps, values) of a column of ``curves.csv`` at the best learning rate."""
        lines = [line for line in self.curves.get((self.best, seed), []) if line[name] not in ("", "nan")]
        return [int(line["step"]) for line in lines], [float(line[name]) for line in lines]

    def steps_to(self, seed: int, loss: float) -> float:
        """Return the step at which the validation loss first falls to ``loss``, interpolated; nan if it never does."""
        steps, values = self.measured(seed, "val_loss")
        for at, value in enumerate(values):
            if value <= loss:
                if at == 0:
                    return float(steps[0])
                share = (values[at - 1] - loss) / (values[at - 1] - value)
                return steps[at - 1] + share * (steps[at] - steps[at - 1])
        return math.nan


def read(folder: Path) -> dict[tuple[str, str], Entry]:
    """Read both CSV files; (study, contestant) -> its runs."""
    entries: dict[tuple[str, str], Entry] = {}
    for name in ("results.csv", "curves.csv"):
        with (folder / name).open(encoding="utf-8", newline="") as file:
            for line in csv.DictReader(file):
                key = line["study"], line["contestant"]
                entry = entries.setdefault(key, Entry(*key))
                point = float(line["lr"]), int(line["seed"])
                if name == "results.csv":
                    entry.rows[point] = line
                else:
                    entry.curves.setdefault(point, []).append(line)
    return {key: entry for key, entry in entries.items() if entry.rows}


def gap(one: Entry, other: Entry) -> Interval:
    """Return the loss of ``one`` minus that of ``other``, each at its best learning rate, over their common seeds."""
    mine, theirs = one.at_best(), other.at_best()
    return Interval.of([mine[seed] - theirs[seed] for seed in sorted(mine.keys() & theirs.keys())])


def steps_saved(one: Entry, other: Entry) -> Interval:
    """Return the percentage of ``other``'s steps that ``one`` needs less to reach ``other``'s least loss, by seed.

    Negative infinity stands for a seed in which it never gets there.
    """
    saved = []
    for seed in sorted(one.at_best().keys() & other.at_best().keys()):
        steps, values = other.measured(seed, "val_loss")
        if values:
            theirs = steps[int(np.argmin(values))]
            mine = one.steps_to(seed, min(values))
            saved.append(-math.inf if math.isnan(mine) else 100 * (1 - mine / theirs))
    return Interval.of(saved)


def pooled_gap(pairs: Sequence[tuple[Entry, Entry]]) -> Interval:
    """Return the gap of :func:`gap` averaged over several pairs (ranks, say) within each seed, over the seeds."""
    losses = [(one.at_best(), other.at_best()) for one, other in pairs]
    common = set.intersection(*(mine.keys() & theirs.keys() for mine, theirs in losses)) if losses else set()
    return Interval.of([math.fsum(a[seed] - b[seed] for a, b in losses) / len(losses) for seed in sorted(common)])


def ratio(one: Entry, other: Entry) -> Interval:
    """Return ln(loss of ``other`` / loss of ``one``) over their common seeds: for losses that fall to zero."""
    mine, theirs = one.at_best(), other.at_best()
    return Interval.of([math.log(theirs[seed] / mine[seed]) for seed in sorted(mine.keys() & theirs.keys())])

"""The bandwidth that each run needs for a compute utilisation: as a table for people and as CSV."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from simdist.results.tables import rate_label

#: compute utilisations that the table asks for
TARGETS = (0.5, 0.75, 0.9, 0.95, 0.99)


@dataclass(frozen=True)
class Utilisation:
    """Compute utilisation of one run over bandwidth, all else about its network being its own.

    Attributes:
        label: of the run.
        needed: target (0 to 1) to the bandwidth in bit/s from which on it is met; None: never.
        curve: bandwidth in bit/s, ascending, to utilisation.
    """

    label: str
    needed: Mapping[float, float | None]
    curve: Mapping[float, float]

    @property
    def most(self) -> float:
        """Utilisation at the greatest bandwidth, where latency and unequal workers are all that is in the way."""
        return self.curve[max(self.curve)]


@dataclass(frozen=True)
class UtilisationTable:
    """Utilisation of several runs.

    Attributes:
        rows: of the runs that could be priced.
        left_out: label of every other run, and why.
        under: settings that were put in place of the runs' own, as ``key=value``.
    """

    rows: Sequence[Utilisation]
    left_out: Mapping[str, str]
    under: Sequence[str] = ()

    @property
    def title(self) -> str:
        """What the table says, and under which settings if they are not the runs' own."""
        under = f" with {', '.join(self.under)}" if self.under else ""
        return f"Bandwidth needed for a compute utilisation{under}"

    def header(self) -> list[str]:
        """Return the titles of the columns of :meth:`texts`."""
        targets = list(self.rows[0].needed) if self.rows else list(TARGETS)
        return ["run", *(f"{target:.0%}" for target in targets), "at most"]

    def texts(self) -> list[list[str]]:
        """Return a row of texts per run."""
        return [
            [row.label, *(_text(row, rate) for rate in row.needed.values()), f"{row.most:.1%}"] for row in self.rows
        ]

    def write_csv(self, path: Path) -> None:
        """Write a line per run and target; no bandwidth: the target is never met."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["run", "compute_utilisation", "bandwidth_bit_per_second"])
            for row in self.rows:
                writer.writerows(
                    [row.label, target, "" if rate is None else f"{rate:.4g}"] for target, rate in row.needed.items()
                )


def _text(row: Utilisation, rate: float | None) -> str:
    if rate is None:
        return "never"
    return "any" if rate == min(row.curve) else rate_label(rate)

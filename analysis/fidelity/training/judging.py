"""The table of predicted steps, and the targets that they are held to."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from itertools import combinations, groupby

from analysis.fidelity.training.predict import Prediction

#: targets: median and worst |error| of seconds, and of bytes, where collectives are large (bytes)
MEDIAN, WORST, BYTES, LARGE = 0.03, 0.10, 0.015, 256 * 1024

HEADINGS = (
    "method",
    "hosts",
    "Mbit/s",
    "measured s",
    "spread",
    "simulated s",
    "error",
    "computing",
    "measured kB",
    "simulated kB",
    "byte error",
)


def cells(p: Prediction) -> tuple[str, ...]:
    """Return a case's row: measured times and bytes are per step and host, computing is a share of simulated time."""
    return (
        p.case.method,
        str(p.case.members),
        f"{p.case.rate / 1e6:g}",
        f"{p.case.seconds:.4f}",
        f"{p.case.spread:.1%}",
        f"{p.seconds:.4f}",
        f"{p.error:+.1%}",
        f"{p.compute_seconds / p.seconds:.0%}",
        f"{p.case.tx_bytes / 1e3:.0f}",
        f"{p.frame_bytes / 1e3:.0f}",
        f"{p.byte_error:+.1%}",
    )


def text_table(predictions: Iterable[Prediction]) -> str:
    """Return all rows, in columns."""
    rows = [HEADINGS, *map(cells, predictions)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)


def judge(predictions: Sequence[Prediction]) -> tuple[list[str], bool]:
    """Return a line for each target, and whether all are met."""
    large = [p for p in predictions if p.largest_payload >= LARGE]
    small = [p for p in predictions if p.largest_payload < LARGE]
    slowest = max(large, key=lambda p: abs(p.error))
    heaviest = max(large, key=lambda p: abs(p.byte_error))
    kept = [order_kept(list(group)) for _, group in groupby(predictions, key=lambda p: (p.case.members, p.case.rate))]
    targets = [
        ("median |error| of seconds", statistics.median(abs(p.error) for p in large), MEDIAN, ""),
        ("worst |error| of seconds", abs(slowest.error), WORST, _place(slowest)),
        ("worst |error| of bytes", abs(heaviest.byte_error), BYTES, _place(heaviest)),
    ]
    lines = [
        f"{what}: {value:.1%}{where} (aim: at most {aim:.1%}){'' if value <= aim else '  MISSED'}"
        for what, value, aim, where in targets
    ]
    lines.append(
        f"order of methods by time: kept in {sum(kept)} of {len(kept)} networks{'' if all(kept) else '  MISSED'}"
    )
    if small:
        median = statistics.median(abs(p.error) for p in small)
        lines.append(f"without an aim, collectives below 256 KiB: median |error| of seconds {median:.1%}")
    return lines, all(value <= aim for _, value, aim, _ in targets) and all(kept)


def order_kept(predictions: Sequence[Prediction]) -> bool:
    """Whether simulated seconds put every two cases in the order in which they were measured: Kendall's tau is 1."""
    return all((a.seconds < b.seconds) == (a.case.seconds < b.case.seconds) for a, b in combinations(predictions, 2))


def _place(p: Prediction) -> str:
    return f", {p.case.method} on {p.case.members} hosts at {p.case.rate / 1e6:g} Mbit/s"

"""Bandwidth as it was recorded: a trace file."""

from __future__ import annotations

import csv
import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from simdist.errors import InputError
from simdist.network.variation import Span, Variation, interval_of, matching
from simdist.settings import AbsolutePath, Settings
from simdist.units import parse_rate, parse_time

if TYPE_CHECKING:
    from simdist.network.sharing import Floats

_EXPECTED = "expected the columns seconds and bandwidth (or factor), and optionally link"


class Trace(Settings):
    """Recorded bandwidth, from a CSV file with a line of headings.

    Columns: ``seconds`` (from the start of the run; the first row at 0, then growing), ``bandwidth`` (bit/s or a text
    such as ``"20Mbit/s"``; headers included, as ``network.bandwidth``) or ``factor`` (share of each link's own
    bandwidth), and optionally ``link`` (a name, or a pattern such as ``"*->switch"``); without it a row is for all
    links. A row holds until the next one for its link; links that no row names keep their bandwidth. Zero is an outage.

    Attributes:
        path: the file.
        period: the trace begins again after so many seconds; None: its last rows hold for ever.
    """

    path: AbsolutePath
    period: Span | None = None

    def on(self, links: Sequence[str], bandwidths: Floats) -> Variation:
        """Return the variation of the named links, whose own bandwidths (bit/s) are given.

        Raises:
            InputError: when the file is missing, is no such table, or would leave a link down for ever.
        """
        return _Traced(self, list(_read(self).values()), links, bandwidths)


@dataclass
class _Series:
    """What the rows for one name or pattern of links say: from each time on, the value. ``last`` is the last line."""

    link: str
    absolute: bool
    times: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    last: str = ""


class _Traced(Variation):
    def __init__(self, trace: Trace, series: Sequence[_Series], links: Sequence[str], bandwidths: Floats) -> None:
        self._period = trace.period
        self._series = series
        self._times = sorted({time for one in series for time in one.times})
        self._count = len(links)
        self._links: list[list[int]] = []
        # what a value is divided by, per series: the links' own bandwidths or one
        self._whole: list[Floats] = []
        named: dict[int, str] = {}
        for one in series:
            found = matching(one.link, links, trace.path)
            for link in found:
                if link in named:
                    raise InputError(
                        f"{trace.path}: got rows for {named[link]!r} and for {one.link!r}, which both mean the link "
                        f"{links[link]!r}; expected each link in one of them"
                    )
                named[link] = one.link
            self._links.append(found)
            self._whole.append(bandwidths[found] if one.absolute else np.ones(len(found)))

    def factors(self, now: float) -> Floats:
        place = self._times[self._place(now)]
        factors = np.ones(self._count)
        for one, links, whole in zip(self._series, self._links, self._whole, strict=True):
            factors[links] = one.values[bisect_right(one.times, place) - 1] / whole
        return factors

    def next_change(self, now: float) -> float:
        following = self._place(now) + 1
        if following < len(self._times):
            return self._start(now) + self._times[following]
        return math.inf if self._period is None else (interval_of(now, self._period) + 1) * self._period

    def _start(self, now: float) -> float:
        """Return when the present repetition began."""
        return 0.0 if self._period is None else interval_of(now, self._period) * self._period

    def _place(self, now: float) -> int:
        """Return which of the times was the last to come, by the very sums that :meth:`next_change` gives."""
        start = self._start(now)
        return bisect_right(self._times, now, key=lambda time: start + time) - 1


class _Row(NamedTuple):
    where: str
    link: str
    seconds: float
    value: float
    absolute: bool


def _read(trace: Trace) -> dict[str, _Series]:
    path = Path(trace.path)
    if not path.is_file():
        raise InputError(f"got network.trace.path {trace.path!r}, which does not exist; expected a CSV file")
    series: dict[str, _Series] = {}
    for row in _rows(path):
        one = series.setdefault(row.link, _Series(row.link, row.absolute))
        if not one.times and row.seconds != 0:
            raise InputError(
                f"{row.where}: got {row.seconds:g} seconds in the first row for {row.link!r}, which leaves a gap "
                "before it; expected 0"
            )
        if one.times and row.seconds <= one.times[-1]:
            raise InputError(
                f"{row.where}: got {row.seconds:g} seconds after {one.times[-1]:g} for {row.link!r}; "
                "expected times that grow"
            )
        if trace.period is not None and row.seconds >= trace.period:
            raise InputError(
                f"{row.where}: got {row.seconds:g} seconds; expected less than network.trace.period {trace.period:g}"
            )
        one.times.append(row.seconds)
        one.values.append(row.value)
        one.last = row.where
    if not series:
        raise InputError(f"got {path} without a row; {_EXPECTED}, and a row at 0 seconds")
    for one in series.values():
        comes_up = any(one.values) if trace.period is not None else one.values[-1] > 0
        if not comes_up:
            raise InputError(
                f"{one.last}: got a trace that leaves {one.link!r} down for ever; expected a last row above zero, or "
                "network.trace.period and some row above zero"
            )
    return series


def _rows(path: Path) -> Iterator[_Row]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            table = csv.DictReader(file, skipinitialspace=True)
            columns = [column.strip() for column in table.fieldnames or []]
            table.fieldnames = columns
            kind = "factor" if "factor" in columns else "bandwidth"
            if sorted(column for column in columns if column != "link") != sorted(["seconds", kind]):
                raise InputError(f"{path}, line 1: got the columns {', '.join(columns) or 'none'}; {_EXPECTED}")
            for cells in table:
                where = f"{path}, line {table.line_num}"
                if None in cells or None in cells.values() or "" in cells.values():
                    raise InputError(f"{where}: got {len(columns)} columns and another number of values; {_EXPECTED}")
                seconds = _number(cells["seconds"], parse_time, f"{where}: seconds")
                value = _number(cells[kind], parse_rate if kind == "bandwidth" else _factor, f"{where}: {kind}")
                yield _Row(where, cells.get("link", "*"), seconds, value, kind == "bandwidth")
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"got {path}, which is no CSV file ({error}); {_EXPECTED}") from error


def _factor(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"got {text!r}; expected a number such as 0.5") from error


def _number(text: str, parse: Callable[[str], float], where: str) -> float:
    try:
        value = parse(text)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
    if not 0 <= value < math.inf:
        raise InputError(f"{where}: got {text!r}; expected zero or more")
    return value

"""One self-contained HTML page and the figures it shows, from run or sweep folders."""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from simdist.errors import InputError
from simdist.results.plots import Drawn, draw_all, save
from simdist.results.plots_points import (
    Target,
    Timings,
    all_but_bandwidth,
    bytes_to_loss,
    choose_target,
    crossovers,
    fastest,
    representatives,
    timings,
)
from simdist.results.tables import Run, bandwidth_of, find_runs, rate_label, settings_that_differ, unfinished
from simdist.results.utilisation_table import UtilisationTable
from simdist.units import format_rate, parse_rate

#: the columns of a step's time in the table: what is hidden is part of the computing
SPLIT = ("compute_seconds", "hidden_comm_seconds", "exposed_comm_seconds")
_OURS = '<meta name="generator" content="simdist report">'


@dataclass(frozen=True, eq=False)
class Comparison:
    """Everything a report or a script shows about a set of runs.

    Attributes:
        runs: all of them.
        shown: those that the figures draw.
        timed: times by bandwidth, of the shown runs.
        target: the loss that they are timed to.
        unfinished: run folders that hold no result yet.
    """

    runs: Sequence[Run]
    shown: Sequence[Run]
    timed: Timings
    target: Target
    unfinished: Sequence[Path]


def compare(paths: Sequence[Path], target: float | None = None) -> Comparison:
    """Read the runs at or below the paths and settle by which rules they are compared.

    Raises:
        InputError: for a path without a readable, finished run.
    """
    runs = find_runs(paths)
    shown = representatives(runs)
    return Comparison(runs, shown, timings(shown), choose_target(shown, target), unfinished(paths))


def report(paths: Sequence[Path], out: Path | None = None, target: float | None = None) -> Path:
    """Compare the runs at or below the paths and write the page; see :func:`folder_for` for where.

    Args:
        target: the loss that runs are timed to, in place of the chosen one.

    Raises:
        InputError: for paths without runs, or where the page would replace a file that is not ours.
    """
    return write_report(compare(paths, target), folder_for(paths, out))


def write_report(comparison: Comparison, folder: Path, used: UtilisationTable | None = None) -> Path:
    """Write ``figures/`` and ``report.html`` into a folder and return the page's path.

    Args:
        used: which bandwidth the shown runs need; None: the page does not say.

    Raises:
        InputError: when the folder cannot be written.
    """
    used = used or UtilisationTable([], {})
    figures = draw_all(comparison.shown, comparison.timed, comparison.target, used)
    page = folder / "report.html"
    try:
        if used.rows:
            used.write_csv(folder / "figures" / "utilisation.csv")
        images = {drawn.name: _embedded(drawn, folder / "figures") for drawn in figures if drawn.figure is not None}
        page.write_text(_render(comparison, used, figures, images, folder), encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write the report to {folder}: {error}; choose another folder with --out") from error
    return page


def folder_for(paths: Sequence[Path], out: Path | None) -> Path:
    """Return where the report goes: ``out``, else the path itself if there is one, else the nearest common parent.

    Raises:
        InputError: when that is no folder of the runs, or the page would replace a file that is not ours.
    """
    folder = out or (paths[0] if len(paths) == 1 else Path(os.path.commonpath([path.resolve() for path in paths])))
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; expected a folder for the report: write another one after --out")
    if folder.resolve() == Path(folder.anchor or "/").resolve():
        raise InputError("these runs share no folder but the file system's root; say where to write with --out DIR")
    page = folder / "report.html"
    if page.exists() and _OURS not in page.read_text(encoding="utf-8", errors="replace"):
        raise InputError(f"{page} was not written by `simdist report`; move it away, or choose another --out")
    return folder


def _embedded(drawn: Drawn, folder: Path) -> str:
    """Save a figure as PNG and SVG; return the SVG as a data address, so that the page needs no other file."""
    assert drawn.figure is not None
    _, svg = save(drawn.figure, folder / drawn.name)
    return "data:image/svg+xml;base64," + base64.b64encode(svg.read_bytes()).decode("ascii")


def _render(
    comparison: Comparison,
    used: UtilisationTable,
    figures: Sequence[Drawn],
    images: Mapping[str, str],
    folder: Path,
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    header, rows = table(comparison)
    workers = sorted({str(run.summary.get("workers", "?")) for run in comparison.runs})
    return environment.get_template("report.html.j2").render(
        header=header,
        rows=rows,
        figures=figures,
        images=images,
        shown=comparison.shown,
        runs=comparison.runs,
        workers=" or ".join(workers),
        target=comparison.target,
        conditions=_flat_text(comparison.timed.conditions or {}),
        winners=winners(comparison),
        used=used,
        crossovers=[
            f"{below} below, {above} above {rate_label(rate)}"
            for rate, below, above in crossovers(comparison.timed.seconds_to(comparison.target))
        ],
        differ=settings_that_differ(comparison.runs),
        commands=_commands(comparison, folder),
        environment=_flat_text(comparison.runs[0].environment),
        unfinished=[os.path.relpath(path, folder) for path in comparison.unfinished],
    )


# --- tables ------------------------------------------------------------------------------------------------------


def table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return (header, a row of texts per run); times only for runs that the figures show."""
    rates = comparison.timed.panels()
    target, timed = comparison.target, comparison.timed
    seconds = timed.seconds_to(target)
    header = ["run", "learning rate", "final training loss", "final validation loss", "sent per worker and step",
              "sent in total"]  # fmt: skip
    header += ["computing per step, own network", "hidden traffic", "exposed traffic"]
    header += [f"simulated time at {rate_label(rate)}" for rate in rates] or ["simulated time, own network"]
    header += [f"time to {target.loss:.4g} at {rate_label(rate)}" for rate in rates]
    header += [f"sent per worker to {target.loss:.4g}"]
    rows = []
    for run in comparison.runs:
        here = timed.steps.get(run.label, {}) if run in comparison.shown else {}
        row = [
            run.label,
            _number((run.scenario.get("optimizer") or {}).get("lr")),
            _number(run.summary.get("final_train_loss")),
            _number(run.summary.get("final_val_loss")),
            _size(run.summary.get("sent_bytes_per_worker_per_step")),
            _size(run.summary.get("sent_bytes_total")),
        ]
        row += [_time(mean) for mean in (run.mean_seconds(name) for name in SPLIT)]
        own = run.steps["simulated_seconds"][-1]
        row += [_time(here[rate]["simulated_seconds"][-1]) if here else "–" for rate in rates] or [_time(own)]
        missed = "never" if here and run.label not in seconds else "–"
        row += [_time(seconds[run.label][rate]) if here and run.label in seconds else missed for rate in rates]
        sent = bytes_to_loss(run.steps, target.loss, target.kind)
        rows.append([*row, "never" if sent is None else _size(sent)])
    return header, rows


def winners(comparison: Comparison) -> list[tuple[str, str, str, str]]:
    """Return (bandwidth, fastest run, its time to the target, how far ahead of the next) for each bandwidth."""
    seconds = comparison.timed.seconds_to(comparison.target)
    found = []
    for rate in sorted(set.intersection(*(set(times) for times in seconds.values())) if len(seconds) > 1 else set()):
        order = sorted(seconds, key=lambda label: seconds[label][rate])
        best, second = order[0], order[1]
        lead = seconds[second][rate] / seconds[best][rate]
        words = f"{lead:.2f}× faster than {second}" if lead >= 1.01 else f"level with {second} (under 1 %)"
        found.append((rate_label(rate), best, _time(seconds[best][rate]), words))
    return found


def data(comparison: Comparison) -> dict[str, Any]:
    """Return the numbers behind the bandwidth figures, ready for JSON."""
    seconds = comparison.timed.seconds_to(comparison.target)
    return {
        "target_loss": comparison.target.loss,
        "target_kind": comparison.target.kind,
        "target_rule": comparison.target.rule,
        "seconds_to_target": {label: {f"{rate:.0f}": s for rate, s in one.items()} for label, one in seconds.items()},
        "bytes_to_target_per_worker": {
            run.label: bytes_to_loss(run.steps, comparison.target.loss, comparison.target.kind)
            for run in comparison.shown
        },
        "fastest": [{"from": one.low, "to": one.high, "run": one.label} for one in fastest(seconds)],
    }


def _commands(comparison: Comparison, folder: Path) -> list[str]:
    lines = []
    for run in comparison.runs:
        place = os.path.relpath(run.path, folder)
        lines.append(f"simdist run {_quoted(os.path.join(place, 'scenario.yaml'))} --out again/{_slug(run.label)}")
        alike = [one for one in run.retimed if all_but_bandwidth(one.conditions) == all_but_bandwidth(run.conditions)]
        rates = dict.fromkeys(
            _exact_rate(one.bandwidth) for one in alike if one.bandwidth != bandwidth_of(run.conditions)
        )
        if rates:
            lines.append(f"simdist retime again/{_slug(run.label)} --over network.bandwidth={','.join(rates)}")
    return [*lines, "simdist report again"]


def _exact_rate(rate: float) -> str:
    text = format_rate(rate)
    return text if parse_rate(text) == rate else repr(rate)


def _quoted(path: str) -> str:
    return path if all(letter.isalnum() or letter in "/._-=+" for letter in path) else "'" + path + "'"


def _slug(label: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._=-" else "-" for letter in label.lower())


def _flat_text(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, item in value.items():
        if item is None or item == []:
            continue  # what is switched off says nothing
        if isinstance(item, Mapping):
            flat |= _flat_text(item, f"{prefix}{key}.")
        elif prefix + str(key) not in ("network.bandwidth", "network.mode"):
            flat[f"{prefix}{key}"] = str(item)
    return flat


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "–"


def _size(value: Any) -> str:
    if not isinstance(value, int | float):
        return "–"
    scale, unit = next(
        ((s, u) for s, u in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if value >= s), (1.0, "B")
    )
    return f"{value / scale:.4g} {unit}"


def _time(seconds: float) -> str:
    if math.isnan(seconds):
        return "–"
    return f"{seconds:,.0f} s" if seconds >= 1000 else f"{seconds:.3g} s"

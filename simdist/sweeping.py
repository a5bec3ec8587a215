"""Sweeps: every combination of some values, one run folder each, finished ones skipped."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from simdist.choosing import plain
from simdist.errors import InputError, SimdistError
from simdist.loading import override
from simdist.results.folder import claim_folder, kind_of
from simdist.scenario import KINDS, Scenario, Sweep
from simdist.units import format_size, format_time
from simdist.yaml_text import parse

if TYPE_CHECKING:
    from rich.table import Table


class Run(Protocol):
    """What carries out one point: :func:`simdist.running.run`."""

    def __call__(self, scenario: Scenario, *, out: Path, progress: bool, ray_address: str | None) -> Path: ...


class Resume(Protocol):
    """What goes on with an unfinished point: :func:`simdist.resuming.resume`."""

    def __call__(self, folder: Path, changes: list[str], *, progress: bool, ray_address: str | None) -> bool: ...


@dataclass(frozen=True)
class Point:
    """One combination: its folder's name, the changed keys, and the scenario."""

    name: str
    changes: dict[str, Any]
    scenario: Scenario


@dataclass
class Outcome:
    """What became of a point; ``summary`` is that of its run folder, ``message`` says what failed."""

    point: Point
    status: Literal["done", "skipped", "failed"]
    summary: dict[str, Any] = field(default_factory=dict)
    message: str = ""


def points(sweep: Sweep) -> list[Point]:
    """Return every combination in order, the last key varying fastest.

    Raises:
        InputError: when a combination is not a valid scenario, naming the combination.
    """
    found: dict[str, Point] = {}
    titles = short_keys(list(sweep.over))
    for values in itertools.product(*sweep.over.values()):
        changes = dict(zip(sweep.over, values, strict=True))
        label = ",".join(f"{titles[key]}={value_label(value)}" for key, value in changes.items()) or "all"
        name = _as_folder(label, changes)
        try:
            point = Point(name, changes, override(sweep.base, changes))
        except InputError as error:
            raise InputError(f"sweep point {label}: {error}") from None
        if name in found:
            raise InputError(f"got the sweep point {label} twice; expected different values for each key")
        found[name] = point
    return list(found.values())


def short_keys(keys: list[str]) -> dict[str, str]:
    """Return the shortest unambiguous title of each dotted key: ``optimizer.name`` is ``optimizer``."""
    short = {key: re.sub(r"\.(name|topology)$", "", key).rpartition(".")[2] for key in keys}
    titles = list(short.values())
    return {key: title if titles.count(title) == 1 else key for key, title in short.items()}


def value_label(value: Any) -> str:
    """Return a value as a short text for names and tables; a section shows its name and the keys that were given."""
    if hasattr(value, "model_fields_set"):
        whole = plain(value, KINDS)
        value = {key: whole[key] for key in whole if key in ("name", "topology") or key in value.model_fields_set}
    if isinstance(value, Mapping):
        name = [str(value[key]) for key in ("name", "topology") if key in value]
        rest = [f"{key}{value_label(item)}" for key, item in value.items() if key not in ("name", "topology")]
        return "-".join([*name, *rest])
    if isinstance(value, (list, tuple)):
        return "+".join(value_label(item) for item in value)
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def _as_folder(label: str, changes: Mapping[str, Any]) -> str:
    """Return a folder's name for a label; what had to be left out is stood for by a hash."""
    name = re.sub(r"[^\w.,=+-]+", "-", label)[:100].strip("-.")
    if name == label.replace("/", "-"):
        return name
    digest = hashlib.sha256(repr(plain(dict(changes), KINDS)).encode()).hexdigest()[:8]
    return f"{name}-{digest}"


def read_summary(folder: Path) -> dict[str, Any]:
    """Return a run folder's ``summary.json``; empty when there is none or it is broken."""
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return summary if isinstance(summary, dict) else {}


def finished(folder: Path, scenario: Scenario) -> bool:
    """Return True when the folder holds this scenario's finished run.

    Raises:
        InputError: when it holds the finished run of another scenario.
    """
    if read_summary(folder).get("status") != "done":
        return False
    if not _is_of(folder, scenario):
        raise InputError(
            f"--out: got {str(folder)!r}, which holds the finished run of another scenario; "
            f"expected a new folder: choose another --out, or delete it"
        )
    return True


def _is_of(folder: Path, scenario: Scenario) -> bool:
    """Return whether a run folder is this scenario's."""
    file = folder / "scenario.yaml"
    try:
        return Scenario.from_dict(parse(file.read_text(encoding="utf-8"), str(file))).to_dict() == scenario.to_dict()
    except (InputError, OSError):
        return False


def run_sweep(
    sweep: Sweep,
    out: Path,
    carry_out: CarryOut,
    *,
    tell: Callable[[str], None] = lambda text: None,
    publish: Callable[[Path], None] = lambda path: None,
) -> list[Outcome]:
    """Run what is not finished yet, each point in its own folder under ``out``; a failed point does not stop the rest.

    Args:
        sweep: the points; all are checked before the first one starts.
        out: a new folder, or that of a sweep to go on with.
        carry_out: runs points, one after the other (:func:`one_by_one`) or at once (:mod:`simdist.side_by_side`).
        tell: takes a line of news for the user.
        publish: called with what is complete: ``sweep.yaml``, and the folder of each point that was run.

    Returns:
        what became of each point, in order.

    Raises:
        InputError: for a bad combination, or a folder that holds something else.
    """
    everything = points(sweep)
    claim_folder(out, "sweep")
    ready = {point.name: finished(out / point.name, point.scenario) for point in everything}
    (out / "sweep.yaml").write_text(sweep.to_yaml(), encoding="utf-8")
    publish(out / "sweep.yaml")
    outcomes: dict[str, Outcome] = {}
    for point in everything:
        if ready[point.name]:
            outcomes[point.name] = Outcome(point, "skipped", read_summary(out / point.name))
            tell(f"[{len(outcomes)}/{len(everything)}] {point.name}: finished before, skipped")
    todo = [point for point in everything if not ready[point.name]]

    def counted(news: str) -> None:
        tell(f"[{len(outcomes) + 1}/{len(everything)}] {news}")

    try:
        for point, message in carry_out(todo, out, counted):
            folder = out / point.name
            outcomes[point.name] = Outcome(point, "failed" if message else "done", read_summary(folder), message)
            if folder.is_dir():
                publish(folder)
    except KeyboardInterrupt as error:
        for point in todo:
            if point.name not in outcomes and kind_of(out / point.name) == "run":
                publish(out / point.name)  # the one that was under way: it can be resumed
        kept = f"{len(outcomes)} of {len(everything)} points are in {out}; the same command runs the others"
        raise KeyboardInterrupt("\n".join(filter(None, [str(error) or "interrupted", kept]))) from None
    return [outcomes[point.name] for point in everything]


class CarryOut(Protocol):
    """Runs points, each into its own folder under ``out``; yields each with what went wrong, or nothing, as it ends."""

    def __call__(
        self, todo: Sequence[Point], out: Path, counted: Callable[[str], None]
    ) -> Iterator[tuple[Point, str]]: ...


def one_by_one(run: Run, resume: Resume, *, progress: bool = True, ray_address: str | None = None) -> CarryOut:
    """Run points one after the other in this process.

    Args:
        run: carries out one point.
        resume: goes on with one that an earlier try left unfinished.
        progress: whether runs show their progress.
        ray_address: a Ray cluster to attach to, for points with engine ``ray``.
    """

    def carry_out(todo: Sequence[Point], out: Path, counted: Callable[[str], None]) -> Iterator[tuple[Point, str]]:
        for point in todo:
            folder = out / point.name
            counted(point.name)
            message = ""
            try:
                if kind_of(folder) == "run" and _is_of(folder, point.scenario):
                    resume(folder, [], progress=progress, ray_address=ray_address)
                else:
                    if kind_of(folder) == "run":
                        shutil.rmtree(folder)  # an unfinished point of a sweep that has been changed since
                    run(point.scenario, out=folder, progress=progress, ray_address=ray_address)
            except Exception as error:  # one bad point must not cost a night's other results: the table names it
                message = message_of(error)
                counted(f"{point.name}: failed: {message}")
            yield point, message

    return carry_out


def message_of(error: Exception) -> str:
    """Return what went wrong with a point, for people."""
    return str(error) if isinstance(error, SimdistError) else f"{type(error).__name__}: {error}"


def table(outcomes: list[Outcome]) -> Table:
    """Return the sweep's result table: the varied keys, losses, simulated time and bytes of each point."""
    from rich.markup import escape
    from rich.table import Table

    keys = list(outcomes[0].point.changes) if outcomes else []
    titles = short_keys(keys)
    shown = Table(*(titles[key] for key in keys), "status", "train loss", "val loss", "simulated", "sent")
    for outcome in outcomes:
        summary = outcome.summary
        cells = [
            _cell(summary.get("final_train_loss"), "{:.4f}".format),
            _cell(summary.get("final_val_loss"), "{:.4f}".format),
            _cell(summary.get("simulated_seconds"), format_time),
            _cell(summary.get("sent_bytes_total"), format_size),
        ]
        shown.add_row(*(escape(value_label(outcome.point.changes[key])) for key in keys), outcome.status, *cells)
    return shown


def _cell(value: Any, show: Callable[[Any], str]) -> str:
    return "-" if value is None else show(value)

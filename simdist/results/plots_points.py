"""The numbers that the figures show, without drawing: time to a loss, who is fastest where, which runs compare.

Rules that decide what is shown are stated here once, and the report repeats them in words.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any, Literal, TypeAlias

import numpy as np

from simdist.results.tables import Column, Run, Steps, bandwidth_of

LossKind: TypeAlias = 'Literal["validation", "training"]'


# --- loss against something --------------------------------------------------------------------------------------


def smooth(values: Column, window: int) -> Column:
    """Mean of the last ``window`` values (fewer at the start): what an onlooker knew then, no look ahead.

    >>> smooth(np.array([4.0, 2.0, 0.0]), 2).tolist()
    [4.0, 3.0, 1.0]
    """
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts), dtype=np.float64)


def smoothing_window(steps: int) -> int:
    """Training loss is averaged over a twentieth of the run, and no fewer than five steps."""
    return max(5, steps // 20)


def loss_kind(runs: Sequence[Run]) -> LossKind:
    """Compare by validation loss if every run measured it at least twice, else by smoothed training loss."""
    measured = all(np.isfinite(run.steps["val_loss"]).sum() >= 2 for run in runs)
    return "validation" if measured else "training"


def loss_curve(steps: Steps, kind: LossKind) -> tuple[Any, Column]:
    """Return (row indices [points], losses [points]) of the curve that runs are compared by."""
    if kind == "validation":
        rows = np.flatnonzero(np.isfinite(steps["val_loss"]))
        return rows, steps["val_loss"][rows]
    losses = steps["train_loss"]
    return np.arange(len(losses)), smooth(losses, smoothing_window(len(losses)))


def time_to_loss(steps: Steps, target: float, kind: LossKind = "validation") -> float | None:
    """Return the simulated seconds at which the loss first reaches ``target``, or None if it never does.

    Between two measurements the loss is taken as linear in time.
    """
    rows, losses = loss_curve(steps, kind)
    return _first_reach(steps["simulated_seconds"][rows], losses, target)


def bytes_to_loss(steps: Steps, target: float, kind: LossKind = "validation") -> float | None:
    """Return the bytes one worker has sent when the loss first reaches ``target``, or None if it never does."""
    rows, losses = loss_curve(steps, kind)
    return _first_reach(sent_per_worker(steps)[rows], losses, target)


def sent_per_worker(steps: Steps) -> Column:
    """Cumulative bytes that one worker has sent, per step."""
    return np.asarray(np.cumsum(steps["sent_bytes_per_worker"]), dtype=np.float64)


def _first_reach(x: Column, losses: Column, target: float) -> float | None:
    below = np.flatnonzero(losses <= target)
    if len(below) == 0:
        return None
    at = int(below[0])
    if at == 0:
        return float(x[0])
    share = (losses[at - 1] - target) / (losses[at - 1] - losses[at])
    return float(x[at - 1] + share * (x[at] - x[at - 1]))


@dataclass(frozen=True)
class Target:
    """The loss that every compared run is timed to, and the rule by which it was chosen, in words."""

    loss: float
    kind: LossKind
    rule: str


def choose_target(runs: Sequence[Run], loss: float | None = None) -> Target:
    """Choose the highest of the runs' final losses, so that every method reaches it; ``loss`` overrides.

    A run that ended no better than it began would make the target worthless and is left out of the choice.
    """
    kind = loss_kind(runs)
    if loss is not None:
        return Target(loss, kind, "given by hand")
    curves = [loss_curve(run.steps, kind)[1] for run in runs]
    learned = [index for index, curve in enumerate(curves) if curve[-1] < curve[0]] or list(range(len(runs)))
    worst = max(learned, key=lambda index: float(curves[index][-1]))
    rule = f"the highest final {kind} loss among these runs ({runs[worst].label}), so that each of them reaches it"
    if len(learned) < len(runs):
        rule += "; runs that ended no better than they began do not count"
    return Target(float(curves[worst][-1]), kind, rule)


def best_loss(run: Run, kind: LossKind) -> float:
    """Return the run's final loss; infinity where it is not a number, so that it sorts last."""
    final = float(loss_curve(run.steps, kind)[1][-1])
    return final if math.isfinite(final) else math.inf


def representatives(runs: Sequence[Run], limit: int = 8) -> list[Run]:
    """Return all runs if a figure can hold them, else the best of each optimizer, at most ``limit``."""
    if len(runs) <= limit:
        return list(runs)
    kind = loss_kind(runs)
    best: dict[str, Run] = {}
    for run in sorted(runs, key=lambda run: best_loss(run, kind)):
        best.setdefault(json.dumps(run.scenario.get("optimizer", {}).get("name", "")), run)
    kept = list(best.values())[:limit]
    return [run for run in runs if run in kept]


# --- times under several networks --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timings:
    """The compared runs' times by bandwidth, all else about network and compute being equal.

    Attributes:
        steps: label -> bandwidth in bit/s -> columns; a run whose network has no single bandwidth has no entry.
        common: bandwidths that every run was timed at, ascending.
        conditions: the shared settings of all that decides seconds, or None where the runs have none in common.
    """

    steps: Mapping[str, Mapping[float, Steps]]
    common: tuple[float, ...]
    conditions: Mapping[str, Any] | None

    def panels(self) -> tuple[float, ...]:
        """Return the lowest, the middle and the highest of the common bandwidths (fewer if there are fewer)."""
        count = len(self.common)
        return tuple(dict.fromkeys(self.common[at] for at in (0, count // 2, count - 1))) if count else ()

    def seconds_to(self, target: Target) -> dict[str, dict[float, float]]:
        """Return label -> bandwidth -> simulated seconds to the target; runs that never reach it have no entry."""
        found: dict[str, dict[float, float]] = {}
        for label, timed in self.steps.items():
            seconds = {rate: time_to_loss(steps, target.loss, target.kind) for rate, steps in timed.items()}
            found[label] = {rate: value for rate, value in seconds.items() if value is not None and value > 0}
        return {label: times for label, times in found.items() if times}


def timings(runs: Sequence[Run]) -> Timings:
    """Collect the runs' own times and re-timings that differ in nothing but bandwidth.

    Where re-timings exist under several such conditions, the one that covers most runs, then most bandwidths, is
    taken (at a tie the first run's own). A run that was never timed under it keeps its own network.
    """
    tables: dict[str, dict[str, dict[float, Steps]]] = {}
    meaning: dict[str, Mapping[str, Any]] = {}
    for run in runs:
        own = bandwidth_of(run.conditions)
        timed = [] if own is None else [(own, run.conditions, run.steps)]
        timed += [(one.bandwidth, one.conditions, one.steps) for one in run.retimed]
        for rate, conditions, steps in timed:
            key = all_but_bandwidth(conditions)
            meaning.setdefault(key, conditions)
            tables.setdefault(key, {}).setdefault(run.label, {}).setdefault(rate, steps)
    chosen = max(tables, key=lambda key: (len(tables[key]), sum(map(len, tables[key].values()))), default="")
    result = {}
    for run in runs:
        times = tables.get(chosen, {}).get(run.label) or tables.get(all_but_bandwidth(run.conditions), {}).get(
            run.label, {}
        )
        if times:
            result[run.label] = dict(sorted(times.items()))
    shared = set.intersection(*(set(times) for times in result.values())) if len(result) == len(runs) else set()
    covers_all = len(tables.get(chosen, {})) == len(runs)
    return Timings(result, tuple(sorted(shared)), meaning[chosen] if covers_all and chosen else None)


def all_but_bandwidth(conditions: Mapping[str, Any]) -> str:
    """Return a text that is equal for conditions that differ in nothing but bandwidth."""
    # A paced run follows the same simulated clock, so its mode is no difference; 1 and 1.0 are one number.
    network = {key: value for key, value in conditions["network"].items() if key not in ("bandwidth", "mode")}
    return json.dumps(_as_floats({**conditions, "network": network}), sort_keys=True, default=str)


def _as_floats(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _as_floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_floats(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


# --- who is fastest where ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Region:
    """A span of bandwidths (bit/s) in which ``label`` needs the fewest seconds."""

    low: float
    high: float
    label: str


def fastest(seconds: Mapping[str, Mapping[float, float]]) -> list[Region]:
    """Split the bandwidths that all runs share into regions by who is fastest, ascending.

    Times are joined by straight lines in (log bandwidth, log seconds); where one line leaves off being lowest is a
    cross-over. Equal times change nothing: the former winner (at the start: the first named) stays.

    >>> fastest({"a": {1e6: 1.0, 1e8: 1.0}, "b": {1e6: 10.0, 1e8: 0.1}})
    [Region(low=1000000.0, high=10000000.0, label='a'), Region(low=10000000.0, high=100000000.0, label='b')]
    """
    if not seconds:
        return []
    rates = sorted(set.intersection(*(set(times) for times in seconds.values())))
    heights = {label: [math.log(times[rate]) for rate in rates] for label, times in seconds.items()}
    regions: list[Region] = []
    for at, (low, high) in enumerate(pairwise(rates)):
        cuts = {0.0, 1.0}
        for one, other in combinations(heights.values(), 2):
            start, end = one[at] - other[at], one[at + 1] - other[at + 1]
            if start * end < 0:
                cuts.add(start / (start - end))
        for left, right in pairwise(sorted(cuts)):
            middle = (left + right) / 2
            height = {label: line[at] + middle * (line[at + 1] - line[at]) for label, line in heights.items()}
            best = min(height.values())
            level = [label for label, value in height.items() if value <= best + 1e-9]
            winner = regions[-1].label if regions and regions[-1].label in level else level[0]
            if regions and regions[-1].label == winner:
                regions[-1] = Region(regions[-1].low, _between(low, high, right), winner)
            else:
                regions.append(Region(_between(low, high, left), _between(low, high, right), winner))
    return regions


def crossovers(seconds: Mapping[str, Mapping[float, float]]) -> list[tuple[float, str, str]]:
    """Return (bandwidth, fastest below it, fastest above it) wherever the fastest run changes, ascending."""
    return [(after.low, before.label, after.label) for before, after in pairwise(fastest(seconds))]


def _between(low: float, high: float, share: float) -> float:
    # Rounded, so that a cross-over on a power of ten does not read 9999999.999; far finer than any claim.
    return float(f"{math.exp(math.log(low) + share * (math.log(high) - math.log(low))):.9g}")


def computing_share(steps: Steps) -> float:
    """Return the share (0 to 1) of simulated time that goes to computing."""
    total = float(steps["simulated_seconds"][-1])
    return float(np.sum(steps["compute_seconds"])) / total if total > 0 else math.nan

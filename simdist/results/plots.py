"""All figures of a comparison: draws those that the data allow and says why the others are left out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from simdist.results.plots_bytes import bytes_by_purpose
from simdist.results.plots_diagnostics import drift_vs_steps, drifts, has_nu, nu_vs_steps
from simdist.results.plots_loss import loss_vs_bytes, loss_vs_steps, loss_vs_time
from simdist.results.plots_network import time_split, time_vs_bandwidth, utilisation_vs_bandwidth
from simdist.results.plots_points import Target, Timings, computing_share, loss_kind, smoothing_window
from simdist.results.plots_style import save
from simdist.results.tables import Run, rate_label
from simdist.results.utilisation_table import UtilisationTable

__all__ = ["Drawn", "draw_all", "save"]

_RETIME = "`simdist retime RUN --over network.bandwidth=10Mbit/s,100Mbit/s,...` adds some without training"


@dataclass(frozen=True)
class Drawn:
    """One figure of a report, or the reason why there is none.

    Attributes:
        name: file stem.
        title: what question it answers.
        caption: what a reader must know to read it.
        figure: None where it was left out.
        reason: why it was left out; empty where it was drawn.
    """

    name: str
    title: str
    caption: str
    figure: Figure | None
    reason: str = ""


def draw_all(runs: Sequence[Run], timed: Timings, target: Target, used: UtilisationTable | None = None) -> list[Drawn]:
    """Draw every figure that these runs (already few enough for one picture) have the data for.

    Args:
        used: utilisation over bandwidth; None: taken from the re-timings.
    """
    return [
        _loss_vs_steps(runs),
        _loss_vs_bytes(runs),
        _loss_vs_time(runs, timed),
        _time_vs_bandwidth(runs, timed, target),
        _bytes(runs),
        _split(runs),
        _computing(runs, timed, used or UtilisationTable([], {})),
        _nu(runs),
        _drift(runs),
    ]


def _how_compared(runs: Sequence[Run]) -> str:
    if loss_kind(runs) == "validation":
        return "Validation loss at the points where it was measured."
    window = smoothing_window(max(len(run.steps["step"]) for run in runs))
    return f"Training loss, averaged over the last {window} steps (not every run has a validation curve)."


def _loss_vs_steps(runs: Sequence[Run]) -> Drawn:
    thin = "training loss" if loss_kind(runs) == "validation" else "the loss of each step"
    caption = (
        f"{_how_compared(runs)} Thin lines: {thin}. The first tenth of training may lie above the picture, "
        "here and in the next two figures."
    )
    return Drawn("loss_vs_steps", "Loss by step: no network in this one", caption, loss_vs_steps(runs))


def _loss_vs_bytes(runs: Sequence[Run]) -> Drawn:
    title = "Loss by bytes sent"
    silent = [run.label for run in runs if not run.steps["sent_bytes_per_worker"].sum() > 0]
    if silent:
        return Drawn("loss_vs_bytes", title, "", None, f"{', '.join(silent)} sent no bytes (one worker?)")
    caption = "What one worker puts on its own link: parameter, gradient and optimizer traffic together."
    return Drawn("loss_vs_bytes", title, caption, loss_vs_bytes(runs))


def _loss_vs_time(runs: Sequence[Run], timed: Timings) -> Drawn:
    title = "Loss by simulated time"
    if not all(run.steps["simulated_seconds"][-1] > 0 for run in runs):
        return Drawn("loss_vs_time", title, "", None, "no simulated time passed in some run")
    caption = "The same training, priced under each bandwidth. Each panel has its own time axis."
    if not timed.panels():
        caption = f"No bandwidth is common to these runs, so each is shown under its own network; {_RETIME}."
    elif len(timed.panels()) == 1:
        caption = f"Only one bandwidth is common to these runs; {_RETIME}."
    return Drawn("loss_vs_time", title, caption, loss_vs_time(runs, timed))


def _no_bandwidths(timed: Timings) -> str:
    if any(len(times) > 1 for times in timed.steps.values()):
        return ""
    rates = sorted({rate_label(rate) for times in timed.steps.values() for rate in times})
    return f"every run was timed at one bandwidth only ({', '.join(rates) or 'none'}); {_RETIME}"


def _time_vs_bandwidth(runs: Sequence[Run], timed: Timings, target: Target) -> Drawn:
    title = f"Time to {target.kind} loss {target.loss:.4g} by bandwidth"
    reached = timed.seconds_to(target)
    reason = _no_bandwidths(timed)
    if not reached:
        reason = f"no run reaches {target.kind} loss {target.loss:.4g}"
    if reason:
        return Drawn("time_vs_bandwidth", title, "", None, reason)
    caption = f"Target: {target.rule}. Between two measurements the loss is taken as linear in time. "
    caption += "The bar above names the fastest; dashed lines are cross-overs, interpolated on the log-log lines."
    if missed := [run.label for run in runs if run.label not in reached]:
        caption += f" Never reached by: {', '.join(missed)}."
    return Drawn("time_vs_bandwidth", title, caption, time_vs_bandwidth(runs, timed, target))


def _bytes(runs: Sequence[Run]) -> Drawn:
    title = "Bytes per step by purpose"
    if not all((run.path / "ledger.parquet").exists() for run in runs):
        return Drawn("bytes_by_purpose", title, "", None, "some run has no ledger.parquet")
    if not any(sum(run.bytes_by_purpose.values()) > 0 for run in runs):
        return Drawn("bytes_by_purpose", title, "", None, "no run sent any bytes (one worker?)")
    caption = "Mean over steps and workers, from the ledger; in brackets the mesh axis that carries the traffic."
    return Drawn("bytes_by_purpose", title, caption, bytes_by_purpose(runs))


def _split(runs: Sequence[Run]) -> Drawn:
    title = "Where the time of a step goes"
    if not all(run.steps["simulated_seconds"][-1] > 0 for run in runs):
        return Drawn("time_split", title, "", None, "no simulated time passed in some run")
    caption = "Mean over steps and workers, each run under its own network."
    if unknown := [run.label for run in runs if math.isnan(run.mean_seconds("hidden_comm_seconds"))]:
        caption += f" What is hidden was not measured for {', '.join(unknown)}."
    return Drawn("time_split", title, caption, time_split(runs))


def _computing(runs: Sequence[Run], timed: Timings, used: UtilisationTable) -> Drawn:
    title = "Compute utilisation: share of time spent computing"
    curves: dict[str, Mapping[float, float]] = {row.label: row.curve for row in used.rows}
    caption = "The rest is communication that computing does not hide."
    if curves:
        caption += " Each run under its own network but for the bandwidth; the table says what is needed for how much."
    else:
        if reason := _no_bandwidths(timed):
            return Drawn("computing_vs_bandwidth", title, "", None, reason)
        for label, table in timed.steps.items():
            curves[label] = {rate: computing_share(steps) for rate, steps in table.items()}
    return Drawn("computing_vs_bandwidth", title, caption, utilisation_vs_bandwidth(runs, curves))


def _nu(runs: Sequence[Run]) -> Drawn:
    title = "ν: spectral norm of the update direction"
    if not any(has_nu(run) for run in runs):
        return Drawn("nu_vs_steps", title, "", None, "no run logged ν (set diagnostics.every with Dion or Orth-Dion)")
    caption = "1: no direction of the low-rank update is overstepped. Line: mean over matrices; band: least to most."
    return Drawn("nu_vs_steps", title, caption, nu_vs_steps(runs))


def _drift(runs: Sequence[Run]) -> Drawn:
    title = "How far workers' own memories drift apart"
    if not any(drifts(run) for run in runs):
        return Drawn("drift_vs_steps", title, "", None, "no run logged a memory that differs between workers")
    caption = (
        "Error feedback and decoupled momentum differ between workers on purpose. Mean over matrices; 1: as far from "
    )
    caption += "their mean as the mean is long. Growth without end says that averaging them now and then would pay."
    return Drawn("drift_vs_steps", title, caption, drift_vs_steps(runs))

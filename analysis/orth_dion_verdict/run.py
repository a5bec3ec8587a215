"""Runs the study of scenarios/orth_dion_verdict.py on two cores; goes on where an earlier call stopped.

    python -m analysis.orth_dion_verdict.run                # `timeout 60m` before it: what is done stays done
    python -m analysis.orth_dion_verdict.run --plan         # the contestants and what is still to do
    python -m analysis.orth_dion_verdict.run --dry-run      # every contestant once, for two steps, into /tmp
    python -m analysis.orth_dion_verdict.run --verify 5     # do the printed commands repeat the runs of the table?

Training is `simdist sweep`, a process per family and round, so that finished points are skipped. A row per run goes to
``results.csv`` beside this file; the run folders may be deleted afterwards. A run whose loss is not finite, or ends
above the loss of the first evaluation, counts as diverged.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from analysis.orth_dion_verdict.plan import SCENARIO, Contestant, changes, command, families, section, wanted
from simdist.results.plots_diagnostics import over_matrices
from simdist.results.tables import Run, read_run

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RESULTS = HERE / "results.csv"
CURVES = HERE / "curves.csv"
#: diagnostics whose mean over steps and matrices is a column
MEANS = ("nu", "delta", "kf_ratio", "sign_fraction", "residual_ratio", "tracking_error", "effective_rank")
COLUMNS = (
    *("study", "contestant", "lr", "seed", "status", "final_val_loss", "final_train_loss"),
    *(f"{name}_mean" for name in MEANS),
    *("nu_max", "sign_fraction_max", "optimizer_bytes_per_worker_and_step", "wall_seconds", "params_sha256", "command"),
)
CURVE_COLUMNS = ("study", "contestant", "lr", "seed", "step", "train_loss", "val_loss", "nu_mean", "nu_max")

_writing = threading.Lock()


# --- one process -------------------------------------------------------------------------------------------------


def sweep(points: Sequence[tuple[Contestant, float, int]], out: Path, extra: Sequence[str] = ()) -> None:
    """Train points that share their settings and seed by one `simdist sweep`.

    Raises:
        RuntimeError: when it did not start; a point that diverges is no error.
    """
    contestant, _, seed = points[0]
    if any((one.settings, at) != (contestant.settings, seed) for one, _, at in points):
        raise ValueError(f"got points of several settings or seeds beside {contestant.label!r}; expected one sweep")
    sections = [section(one, lr) for one, lr, _ in points]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "simdist.cli", "sweep", SCENARIO, "--quiet", "--out", str(out)),
            *(part for key, value in contestant.settings.items() for part in ("--set", f"{key}={json.dumps(value)}")),
            *(part for change in extra for part in ("--set", change)),
            *("--over", f"optimizer={json.dumps(sections)[1:-1]}", "--over", f"seed={seed}"),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode not in (0, 3):
        raise RuntimeError(f"simdist sweep ended with status {done.returncode}: {done.stderr.strip()[-2000:]}")


def found_in(out: Path, points: Sequence[tuple[Contestant, float, int]]) -> list[Run]:
    """Return the run of each point, failed ones too."""
    runs = [read_run(file.parent) for file in sorted(out.glob("*/summary.json"))]
    ordered = []
    for contestant, lr, seed in points:
        asked = section(contestant, lr)
        (mine,) = [run for run in runs if run.scenario["seed"] == seed and _within(asked, run.scenario["optimizer"])]
        ordered.append(mine)
    return ordered


def _within(asked: dict[str, Any], given: dict[str, Any]) -> bool:
    return all(
        _within(value, given[key]) if isinstance(value, dict) else given.get(key) == value
        for key, value in asked.items()
    )


# --- rows --------------------------------------------------------------------------------------------------------


def row(run: Run, contestant: Contestant, lr: float, seed: int) -> dict[str, Any]:
    """Return the line of ``results.csv`` for a run."""
    final, val = run.summary.get("final_val_loss"), run.steps["val_loss"]
    measured = val[np.isfinite(val)]
    diverged = run.summary["status"] != "done" or final is None or final > measured[0]
    seen = run.diagnostics
    return {
        "study": contestant.study,
        "contestant": contestant.label,
        "lr": lr,
        "seed": seed,
        "status": "diverged" if diverged else "done",
        "final_val_loss": final,
        "final_train_loss": run.summary.get("final_train_loss"),
        **{f"{name}_mean": _finite(np.mean, seen[name]) for name in MEANS if name in seen},
        **{f"{name}_max": _finite(np.max, seen[name]) for name in ("nu", "sign_fraction") if name in seen},
        "optimizer_bytes_per_worker_and_step": sum(
            size for (purpose, _), size in run.bytes_by_purpose.items() if purpose == "optimizer"
        ),
        "wall_seconds": round(run.summary["wall_seconds"], 2),
        "params_sha256": run.summary.get("params_sha256"),
        "command": command(contestant, lr, seed),
    }


def _finite(reduce: Any, values: Any) -> float | str:
    values = values[np.isfinite(values)]
    return f"{reduce(values):.6g}" if len(values) else ""


def curve(run: Run, contestant: Contestant, lr: float, seed: int) -> list[dict[str, Any]]:
    """Return the lines of ``curves.csv``: a run's steps at which something was measured."""
    nu: dict[float, tuple[float, float]] = {}
    if "nu" in run.diagnostics:
        steps, mean, _, high = over_matrices(run, "nu")
        nu = {step: (a, b) for step, a, b in zip(steps, mean, high, strict=True)}
    lines = []
    for step, train, val in zip(*(run.steps[name] for name in ("step", "train_loss", "val_loss")), strict=True):
        if step in nu or math.isfinite(val):
            mean_max = [f"{value:.5g}" for value in nu.get(step, ())] or ["", ""]
            values = (contestant.study, contestant.label, lr, seed, int(step), f"{train:.5g}", f"{val:.6g}", *mean_max)
            lines.append(dict(zip(CURVE_COLUMNS, values, strict=True)))
    return lines


def append(file: Path, columns: Sequence[str], lines: Sequence[dict[str, Any]]) -> None:
    """Add lines to a CSV file, with a header when it is new."""
    with _writing:
        new = not file.exists()
        with file.open("a", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, columns, restval="")
            if new:
                writer.writeheader()
            writer.writerows(lines)


def read_losses(file: Path) -> dict[tuple[str, str], dict[tuple[float, int], float]]:
    """Return (study, contestant) -> (lr, seed) -> final validation loss, inf where diverged."""
    found: dict[tuple[str, str], dict[tuple[float, int], float]] = {}
    if file.exists():
        with file.open(encoding="utf-8", newline="") as stream:
            for line in csv.DictReader(stream):
                loss = float(line["final_val_loss"]) if line["status"] == "done" else math.inf
                mine = found.setdefault((line["study"], line["contestant"]), {})
                mine[float(line["lr"]), int(line["seed"])] = loss
    return found


# --- the study ---------------------------------------------------------------------------------------------------


def run_family(family: Sequence[Contestant], runs: Path) -> None:
    """Run rounds of what is wanted until every contestant of the family is done."""
    while True:
        known = read_losses(RESULTS)
        due = [(one, lr, seed) for one in family for lr, seed in wanted(one, known.get((one.study, one.label), {}))]
        if not due:
            return
        for seed in sorted({seed for _, _, seed in due}):
            points = [point for point in due if point[2] == seed]
            names = "".join(f"{one.study}/{one.label}/{lr}/{seed};" for one, lr, _ in points)
            out = runs / hashlib.sha256(names.encode()).hexdigest()[:16]
            sweep(points, out)
            trained = list(zip(found_in(out, points), points, strict=True))
            append(CURVES, CURVE_COLUMNS, [line for run, point in trained for line in curve(run, *point)])
            append(RESULTS, COLUMNS, [row(run, *point) for run, point in trained])
            for run, (one, lr, _) in trained:
                loss = run.summary.get("final_val_loss")
                print(f"{one.study} | {one.label} | lr {lr:g} | seed {seed} | {loss}", flush=True)


def run_all(runs: Path, processes: int) -> int:
    """Run every family, ``processes`` at a time; a family that fails does not stop the rest. Returns failures."""

    def one(family: Sequence[Contestant]) -> str | None:
        try:
            run_family(family, runs)
        except (RuntimeError, OSError, ValueError) as error:
            return f"{family[0].study} | {family[0].label} ...: {error}"
        return None

    with ThreadPoolExecutor(processes) as pool:
        failed = [problem for problem in pool.map(one, families()) if problem]
    print("\n".join(failed), file=sys.stderr)
    return len(failed)


def dry_run(processes: int) -> int:
    """Train every contestant for two steps at its first learning rate, and read the runs back. Returns failures."""

    def one(family: Sequence[Contestant]) -> str:
        points = [(contestant, contestant.start, 0) for contestant in family]
        with tempfile.TemporaryDirectory() as folder:
            try:
                sweep(points, Path(folder, "runs"), ["steps=2", "evaluation.every=1", "diagnostics.every=1"])
                found = found_in(Path(folder, "runs"), points)
                lines = [row(run, *point) for run, point in zip(found, points, strict=True)]
                assert all(curve(run, *point) for run, point in zip(found, points, strict=True))
            except (RuntimeError, OSError, ValueError) as error:
                return f"FAILED {family[0].study} | {family[0].label}: {error}"
        return "\n".join(f"ok {r['study']} | {r['contestant']}: {r['wall_seconds']:g} s, {r['status']}" for r in lines)

    with ThreadPoolExecutor(processes) as pool:
        told = list(pool.map(one, families()))
    print("\n".join(told))
    return sum(text.startswith("FAILED") for text in told)


def verify(count: int) -> int:
    """Repeat ``count`` runs of the table (the same ones each time) by their commands and compare the parameters."""
    with RESULTS.open(encoding="utf-8", newline="") as stream:
        lines = [line for line in csv.DictReader(stream) if line["params_sha256"]]
    wrong = 0
    for line in random.Random(0).sample(lines, min(count, len(lines))):
        with tempfile.TemporaryDirectory() as folder:
            arguments = line["command"].split()[1:]
            subprocess.run(
                [sys.executable, "-m", "simdist.cli", *arguments, "--quiet", "--out", f"{folder}/run"],
                cwd=ROOT,
                check=True,
                stdout=subprocess.DEVNULL,
            )
            summary = json.loads(Path(folder, "run", "summary.json").read_text(encoding="utf-8"))
        same = summary["params_sha256"] == line["params_sha256"]
        wrong += not same
        print("same" if same else "DIFFERS", line["command"], flush=True)
    return wrong


def tell_plan() -> None:
    """Print the contestants with their first command, and how many runs each has and still wants next."""
    known = read_losses(RESULTS)
    for one in (one for family in families() for one in family):
        mine = known.get((one.study, one.label), {})
        first = changes(one, one.start, 0)
        print(f"{one.study} | {one.label} | {len(mine)} runs, {len(wanted(one, mine))} due | {len(first)} keys changed")
    print("Runs so far:", sum(map(len, known.values())))


def main(arguments: list[str] | None = None) -> None:
    """Carry out, plan or check the study."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "orth_dion_verdict", help="folder of run folders")
    parser.add_argument("--processes", type=int, default=2, help="training processes side by side")
    parser.add_argument("--plan", action="store_true", help="print the contestants and stop")
    parser.add_argument("--dry-run", action="store_true", help="two steps of everything, nothing recorded")
    parser.add_argument("--verify", type=int, metavar="N", help="repeat N recorded runs and compare their parameters")
    given = parser.parse_args(arguments)
    if given.plan:
        tell_plan()
    elif given.dry_run:
        sys.exit(min(1, dry_run(given.processes)))
    elif given.verify is not None:
        sys.exit(min(1, verify(given.verify)))
    else:
        sys.exit(min(1, run_all(given.runs, given.processes)))


if __name__ == "__main__":
    main()

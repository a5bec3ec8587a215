"""At which rank does which method send least? Bytes per worker and step against rank, for DDP, FSDP and HSDP.

    python analysis/byte_crossovers.py              # figure and numbers in analysis/byte_crossovers/
    python analysis/byte_crossovers.py --check      # and compare the forms with the ledgers of real one-step runs

The closed forms are those of cards 0, 1, 3 and 5: bytes sent for one m x n matrix, with ring(k) = (k-1)/k and the cost
of a batch of equal matrices shared out. Shown is what differs between methods: the optimizer's own traffic, and the
gradient's all-reduce over replicas or the factors that take its place. Gathering parameters and reducing gradients
over shards costs the same under every method and is left out.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from simdist.results.plots_style import legend_above, line_styles, log_ticks, new_figure, plain_number, save, with_style
from simdist.results.tables import find_runs

HERE = Path(__file__).resolve().parent
#: behind a text that lines would run through
PLATE = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
SCENARIO = HERE.parent / "scenarios" / "orth_dion_verdict.py"


@dataclass(frozen=True)
class Case:
    """One matrix on one mesh; ``factors`` and ``grads`` are bytes per number, statistics are float32."""

    m: int
    n: int
    replicas: int
    shards: int
    factors: int = 2
    grads: int = 2

    @property
    def mesh(self) -> str:
        """Name of the mesh's kind."""
        if self.shards == 1:
            return f"DDP, {self.replicas} workers"
        return (
            f"FSDP, {self.shards} workers" if self.replicas == 1 else f"HSDP, {self.replicas} x {self.shards} workers"
        )

    def compressed(self, r: int) -> bool:
        """Whether factors replace the gradient between replicas: only where smaller, as microsoft/dion does."""
        return self.replicas > 1 and (self.m + self.n) * r < self.m * self.n


def ring(k: int) -> float:
    """Return the share of a message that a worker sends in a ring all-gather or reduce-scatter of ``k``."""
    return (k - 1) / k


def dense(case: Case, r: int) -> float:
    """All-reduce of the gradient over replicas; nothing else (AdamW)."""
    return 2 * ring(case.replicas) * case.m * case.n / case.shards * case.grads


def muon_all_to_all(case: Case, r: int) -> float:
    """Momentum rows to the matrix' owner and the update back; under DDP only the update travels."""
    whole = case.m * case.n * case.factors
    own = 2 * ring(case.shards) * whole / case.shards if case.shards > 1 else ring(case.replicas) * whole
    return dense(case, r) + own


def muon_all_gather(case: Case, r: int) -> float:
    """Every worker of a shard group gathers the momentum and repeats the work."""
    return dense(case, r) + ring(case.shards) * case.m * case.n * case.factors


def low_rank(case: Case, r: int, statistics: float) -> float:
    """Dion's factors; ``statistics`` is what the right factor sends on top when rows are sharded."""
    m, n, b = case.m, case.n, case.factors
    if case.shards == 1:
        if case.compressed(r):
            return 2 * ring(case.replicas) * (m + n) * r * b
        return dense(case, r) + ring(case.replicas) * n * r * b
    synced = 2 * ring(case.replicas) * (m + n) / case.shards * r * b if case.compressed(r) else dense(case, r)
    return 2 * ring(case.shards) * n * r * b + statistics + synced


def dion(case: Case, r: int) -> float:
    """Column norms: r float32 numbers."""
    return low_rank(case, r, 2 * ring(case.shards) * 4 * r)


def gram(passes: int) -> Callable[[Case, int], float]:
    """Cholesky-QR: an r x r float32 Gram matrix is all-reduced in each pass."""
    return lambda case, r: low_rank(case, r, passes * 2 * ring(case.shards) * 4 * r * r)


def all_to_all_qr(case: Case, r: int) -> float:
    """W's rows to an owner that takes its QR, and back."""
    return low_rank(case, r, 2 * ring(case.shards) / case.shards * case.m * r * case.factors)


METHODS: dict[str, Callable[[Case, int], float]] = {
    "dense gradient (AdamW)": dense,
    "Muon, all-to-all": muon_all_to_all,
    "Muon, all-gather": muon_all_gather,
    "Dion": dion,
    "Orth-Dion, one Gram": gram(1),
    "Orth-Dion, two Grams": gram(2),
    "Orth-Dion, all-to-all QR": all_to_all_qr,
}


def marks(case: Case) -> list[tuple[str, str, float]]:
    """Return the ranks at which two methods send the same: (short name in the figure or empty, meaning, rank)."""
    m, n, b = case.m, case.n, case.factors
    found = []
    if case.shards > 1:
        found.append(("m/F", "low rank = all-to-all Muon: r = m/F", m / case.shards))
        found.append(("", "all-to-all QR = one Gram: r = m b/(4 F)", m * b / (4 * case.shards)))
        found.append(("nb/8", "two Grams double Dion: r = n b/8", n * b / 8))
        found.append(("nb/4", "one Gram doubles Dion: r = n b/4", n * b / 4))
    if case.replicas > 1:
        found.append(("mn/(m+n)", "factors = gradient: (m+n) r = m n", m * n / (m + n)))
    return found


@with_style
def draw(cases: Sequence[Case], ranks: Sequence[int]) -> Figure:
    """One panel per mesh, log-log; dotted verticals at the cross-overs of :func:`marks`."""
    figure, panels = new_figure(4.3, len(cases))
    styles = line_styles(list(METHODS))
    values = [METHODS[name](case, r) for name in METHODS for case in cases for r in ranks]
    low, high = min(value for value in values if value) / 1.5e6, max(values) * 1.5 / 1e6
    for axes, case in zip(panels, cases, strict=True):
        for name, form in METHODS.items():
            if case.shards == 1 and name.startswith("Orth-Dion"):
                continue  # equal to Dion there
            sent = [form(case, r) / 1e6 for r in ranks]
            if any(sent):
                axes.plot(ranks, sent, markevery=(0, max(1, len(ranks) // 4)), **styles[name].keywords())
        _panel(axes, case, ranks, low, high)
    panels[0].set_ylabel("MB sent per worker and step,\nfor one matrix (log)")
    legend_above(figure, styles)
    return figure


def _panel(axes: Axes, case: Case, ranks: Sequence[int], low: float, high: float) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    # zero has no place on a log axis
    zero = "" if any(dense(case, r) for r in ranks) else "\n(dense gradient: 0)"
    axes.set_title(case.mesh + zero, fontsize=9)
    axes.set_xlabel("Rank r (log)")
    ticks = [ranks[-1] / 4**power for power in range(8) if ranks[-1] / 4**power >= ranks[0]]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    log_ticks(axes.yaxis, low, high, plain_number)
    at: dict[float, list[str]] = {}
    for short, _, rank in marks(case):
        if short:
            at.setdefault(rank, []).append(short)
    for rank, texts in at.items():
        axes.axvline(rank, color="#555555", linestyle=":", linewidth=1.2)
        axes.text(
            rank / 1.03, low * 1.1, ", ".join(texts), rotation=90, ha="right", va="bottom", fontsize=8, bbox=PLATE
        )


# --- the forms against real runs ---------------------------------------------------------------------------------

#: a model whose stacks and rows divide by the meshes below, so that no padding and no dummies blur the comparison
WIDTH, HIDDEN, DEPTH, VOCABULARY = 32, 64, 8, 256
MATRICES = [(WIDTH, WIDTH)] * 4 * DEPTH + [(HIDDEN, WIDTH)] * 2 * DEPTH + [(WIDTH, HIDDEN)] * DEPTH
#: numbers in embedding, head and norms, which average over replicas densely under every method
OTHERS = 2 * VOCABULARY * WIDTH + WIDTH + 2 * DEPTH * WIDTH
CHECK_RANKS = (4, 8, 16, 24)


def real_runs() -> dict[str, dict[str, object]]:
    """Return the optimizer section of each method that the ledger can be asked for."""
    orth: dict[str, object] = {"name": "orth_dion", "lr": 0.02, "orthonormalization": "gram"}
    return {
        "dense gradient (AdamW)": {"name": "adamw", "lr": 0.001},
        "Muon, all-to-all": {"name": "muon", "lr": 0.02, "form": "owner"},
        "Muon, all-gather": {"name": "muon", "lr": 0.02, "form": "gather"},
        "Dion": {"name": "dion", "lr": 0.02},
        "Orth-Dion, one Gram": {**orth, "gram_passes": 1},
        "Orth-Dion, two Grams": {**orth, "gram_passes": 2},
        "Orth-Dion, all-to-all QR": {**orth, "orthonormalization": "all_to_all"},
    }


def check() -> list[list[str]]:
    """Run one step of every method, mesh and rank; return rows of (mesh, method, rank, form, ledger).

    Raises:
        SystemExit: when a form and a ledger differ by half a byte or more.
    """
    rows, wrong = [], 0
    for replicas, shards in ((8, 1), (1, 8), (2, 8)):
        low_rank_runs = [
            (name, {**section, "rank": r}, r)
            for (name, section), r in itertools.product(real_runs().items(), CHECK_RANKS)
            if "dion" in str(section["name"])
        ]
        others = [(name, section, 0) for name, section in real_runs().items() if "dion" not in str(section["name"])]
        asked = [*others, *low_rank_runs]
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, "runs")
            _one_step(out, replicas, shards, [section for _, section, _ in asked])
            runs = [(run.scenario["optimizer"], run.bytes_by_purpose) for run in find_runs([out])]
        for name, section, r in asked:
            (sent,) = [sent for optimizer, sent in runs if section.items() <= optimizer.items()]
            booked = sum(
                size
                for (purpose, axis), size in sent.items()
                if purpose == "optimizer" or (purpose, axis) == ("grad_reduce", "replicas")
            )
            expected = sum(METHODS[name](Case(m, n, replicas, shards), r) for m, n in MATRICES)
            expected += 2 * ring(replicas) * OTHERS / shards * 2
            wrong += abs(booked - expected) >= 0.5
            rows.append([f"{replicas} x {shards}", name, str(r or ""), f"{expected:.1f}", f"{booked:.1f}"])
    if wrong:
        sys.exit(f"{wrong} of {len(rows)} closed forms differ from the ledger:\n" + "\n".join(map(str, rows)))
    return rows


def _one_step(out: Path, replicas: int, shards: int, sections: Sequence[dict[str, object]]) -> None:
    model = {"width": WIDTH, "hidden": HIDDEN, "depth": DEPTH, "heads": 2, "context": 8, "batch": 1}
    settings: dict[str, object] = {
        "steps": 1,
        "engine.name": "stacked",
        "mesh.replicas": replicas,
        "mesh.shards": shards,
        **{f"wire.{kind}": "bf16" for kind in ("params", "grads", "factors")},
        **{f"workload.{key}": value for key, value in model.items()},
        "workload.validation_batches": 1,
        "diagnostics.every": 0,
    }
    command = [sys.executable, "-m", "simdist.cli", "sweep", str(SCENARIO), "--quiet", "--out", str(out)]
    command += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    subprocess.run(
        [*command, "--over", f"optimizer={json.dumps(sections)[1:-1]}"], check=True, stdout=subprocess.DEVNULL
    )


def main(arguments: list[str] | None = None) -> None:
    """Write the figure and its numbers, print the cross-overs, and with ``--check`` hold the forms to real runs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "byte_crossovers", help="folder for figure and numbers")
    parser.add_argument("--rows", type=int, default=4096, help="m of the matrix")
    parser.add_argument("--columns", type=int, default=4096, help="n of the matrix")
    parser.add_argument("--shards", type=int, default=8, help="F, also the number of workers of DDP")
    parser.add_argument("--check", action="store_true", help="compare with the ledgers of real one-step runs")
    given = parser.parse_args(arguments)

    m, n, shards = given.rows, given.columns, given.shards
    cases = [Case(m, n, shards, 1), Case(m, n, 1, shards), Case(m, n, 2, shards)]
    low, high = math.log2(max(1, min(m, n) // 64)), math.log2(min(m, n))
    steps = int(8 * (high - low))
    ranks = sorted({round(2 ** (low + (high - low) * i / steps)) for i in range(steps + 1)})

    given.out.mkdir(parents=True, exist_ok=True)
    save(draw(cases, ranks), given.out / "byte_crossovers")
    with (given.out / "byte_crossovers.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["mesh", "m", "n", "method", "rank", "sent_bytes_per_worker_and_step"])
        for case, (name, form), r in itertools.product(cases, METHODS.items(), ranks):
            writer.writerow([case.mesh, m, n, name, r, f"{form(case, r):.1f}"])
    print(f"| {m} x {n}, bf16 factors and gradients | cross-over | rank |\n| --- | --- | ---: |")
    for case in cases:
        for _, title, rank in marks(case):
            print(f"| {case.mesh} | {title} | {rank:g} |")
    if given.check:
        rows = check()
        with (given.out / "check.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["replicas_x_shards", "method", "rank", "closed_form_bytes", "ledger_bytes"])
            writer.writerows(rows)
        print(f"\n{len(rows)} one-step runs: closed form and ledger agree.")


if __name__ == "__main__":
    main()

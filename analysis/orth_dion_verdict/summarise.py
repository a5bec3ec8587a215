"""Tables and figures of the study, from ``results.csv`` and ``curves.csv`` beside this file.

    python -m analysis.orth_dion_verdict.summarise

Prints Markdown and writes the same to ``tables.md``; figures go to ``figures/``. Each row of a table names the command
that repeats its first seed (``--set seed=1`` and ``seed=2`` give the others).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from analysis.orth_dion_verdict.figures import draw_all
from analysis.orth_dion_verdict.plan import MEMORIES, RANKS
from analysis.orth_dion_verdict.statistics import Entry, Interval, gap, pooled_gap, ratio, read, steps_saved
from simdist.results.plots_style import save

HERE = Path(__file__).resolve().parent
Entries = dict[tuple[str, str], Entry]
FACTORS = ("colnorm", "qr_raw", "qr_pos", "polar", "exact_svd")
#: of two right factors under equal memory and rank
QUESTIONS = (
    ("Does raw QR fail?", "qr_raw", "qr_pos"),
    ("Does QR with fixed signs beat unit columns?", "qr_pos", "colnorm"),
    ("Does polar beat QR?", "polar", "qr_pos"),
    ("How far is the oracle?", "exact_svd", "qr_pos"),
)
#: mean nu of Dion in the paper, LLaMA 320M, by rank over d
PAPER_NU = {0.125: 1.20, 0.25: 1.28, 0.5: 1.34}


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _mean(entry: Entry, name: str, digits: int = 2) -> str:
    values = entry.column(name)
    return f"{sum(values) / len(values):.{digits}f}" if values else "-"


def _most(entry: Entry, name: str) -> str:
    values = entry.column(name)
    return f"{max(values):.2f}" if values else "-"


def _lr(entry: Entry) -> str:
    return f"{entry.best:g}" + (" (end of the grid)" if entry.on_edge else "")


def _loss(entry: Entry) -> str:
    return Interval.of(list(entry.at_best().values())).text()


def main_table(entries: Entries, study: str) -> str:
    """Every contestant of a study at its best learning rate."""
    rows = []
    for (its, label), entry in entries.items():
        if its != study:
            continue
        factor, _, rest = label.partition(", ")
        colnorm = entries.get((study, f"colnorm, {rest}"))
        dion = entries.get((study, f"Dion, {rest.rpartition(', ')[2]}")) or entries.get(
            (study, f"colnorm, EF-C 0.05, {rest.rpartition(', ')[2]}")
        )
        against = gap(entry, colnorm).text() if colnorm and factor in FACTORS and factor != "colnorm" else "-"
        saved = steps_saved(entry, dion) if dion and dion is not entry else None
        rows.append(
            [
                label,
                _lr(entry),
                _loss(entry),
                against,
                "-" if saved is None or not saved.count else _saved(saved),
                f"{_mean(entry, 'nu_mean')} / {_most(entry, 'nu_max')}",
                _mean(entry, "delta_mean"),
                _mean(entry, "kf_ratio_mean"),
                _mean(entry, "sign_fraction_mean"),
                f"{entry.diverged} of {len(entry.rows)}",
                f"`{entry.command()}`",
            ]
        )
    header = [
        *("contestant", "lr", "final val loss", "minus colnorm's, paired", "steps saved to Dion's least loss"),
        *("nu mean / max", "delta", "<M, D>/(nu KF_r)", "sign fraction", "diverged", "command"),
    ]
    return markdown(header, rows)


def _saved(saved: Interval) -> str:
    return "not reached" if saved.mean == float("-inf") else saved.text(0) + " %"


def questions(entries: Entries, study: str) -> str:
    """The contrasts that the study was made for, with their intervals."""
    lines: list[list[str]] = []

    def contrast(question: str, one: str, other: str) -> None:
        if (study, one) in entries and (study, other) in entries:
            found = gap(entries[study, one], entries[study, other])
            lines.append([question, f"{one} minus {other}", found.text(), "clear" if found.clear else "within noise"])

    for memory in MEMORIES:
        for question, one, other in QUESTIONS:
            ends = [f"{memory}, r = {rank:g} d" for rank in RANKS]
            keys = [((study, f"{one}, {end}"), (study, f"{other}, {end}")) for end in ends]
            pairs = [(entries[a], entries[b]) for a, b in keys if a in entries and b in entries]
            if len(pairs) > 1:
                found, title = pooled_gap(pairs), f"{one} minus {other}, {memory}, mean over {len(pairs)} ranks"
                lines.append([question, title, found.text(), "clear" if found.clear else "within noise"])
    for memory in MEMORIES:
        for rank in RANKS:
            end = f"{memory}, r = {rank:g} d"
            for question, one, other in QUESTIONS:
                contrast(question, f"{one}, {end}", f"{other}, {end}")
    for rank in RANKS:
        contrast("Orth-Dion with the paper's memory", f"qr_pos, EF-P 1, r = {rank:g} d", f"Dion, r = {rank:g} d")
        contrast("Dion with the paper's memory", f"colnorm, EF-P 1, r = {rank:g} d", f"Dion, r = {rank:g} d")
        contrast("Is our Dion the family's colnorm?", f"Dion, r = {rank:g} d", f"colnorm, EF-C 0.05, r = {rank:g} d")
        for memory in ("EF-P 1", "EF-C 0.3"):
            contrast("Does Orth-Dion reach Muon?", f"qr_pos, {memory}, r = {rank:g} d", "Muon")
    contrast("Adaptive against fixed rank", "Ada-Orth-Dion, EF-P 1, r from 0.25 d", "qr_pos, EF-P 1, r = 0.25 d")
    return markdown(["question", "loss of", "gap in final loss, 95 %", "verdict"], lines)


def nu_table(entries: Entries) -> str:
    """Dion's nu beside the paper's, and beside that of pure noise: 1 + sqrt(r/m) for a Gaussian m x r."""
    rows = []
    for (study, label), entry in entries.items():
        rank = next((rank for rank in RANKS if label.endswith(f"r = {rank:g} d")), None)
        if rank is None or not label.startswith(("Dion", "colnorm, EF-C 0.05", "colnorm, EF-P 1")):
            continue
        # m is d, or the MLP's inner size of about 3 d
        noise = f"{1 + (rank / 3) ** 0.5:.2f} to {1 + rank**0.5:.2f}"
        measured = Interval.of(entry.column("nu_mean")).text(2)
        rows.append([study, label, measured, _most(entry, "nu_max"), f"{PAPER_NU[rank]:.2f}", noise])
    return markdown(["study", "contestant", "nu, mean", "largest", "paper's mean", "pure noise"], rows)


def teacher_table(entries: Entries, study: str) -> str:
    """Losses on a known spectrum; they fall towards zero, so that factors are compared by the ratio of their losses."""
    rows = []
    for (its, label), entry in entries.items():
        if its != study:
            continue
        other = entries.get((study, f"colnorm, {label.partition(', ')[2]}"))
        mean = sum(entry.at_best().values()) / len(entry.at_best())
        against = ratio(entry, other).text(2) if other and other is not entry and mean < float("inf") else "-"
        nu = f"{_mean(entry, 'nu_mean')} / {_most(entry, 'nu_max')}"
        rows.append([label, _lr(entry), f"{mean:.3g}", against, nu, _mean(entry, "delta_mean"), f"`{entry.command()}`"])
    header = [
        "contestant",
        "lr",
        "final loss",
        "ln(colnorm's loss / this), paired",
        "nu mean / max",
        "delta",
        "command",
    ]
    return markdown(header, rows)


def wire_table(entries: Entries) -> str:
    """Optimizer bytes of adaptive rank, active and padded."""
    rows = [
        [label, f"{float(row['optimizer_bytes_per_worker_and_step']) / 1e3:.1f}", f"`{row['command']}`"]
        for (study, label), entry in entries.items()
        if study == "wire"
        for row in entry.rows.values()
    ]
    return markdown(["rank, wire form", "optimizer traffic, kB per worker and step", "command"], rows)


def main(arguments: list[str] | None = None) -> None:
    """Write tables and figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=HERE, help="where results.csv and curves.csv are")
    folder: Path = parser.parse_args(arguments).folder
    entries = read(folder)
    studies = list(dict.fromkeys(study for study, _ in entries))
    parts = []
    for study in studies:
        if study == "wire":
            parts.append(f"## {study}\n\n{wire_table(entries)}")
        elif study.startswith("teacher"):
            parts.append(f"## {study}\n\n{teacher_table(entries, study)}")
        else:
            parts.append(f"## {study}\n\n{questions(entries, study)}\n\n{main_table(entries, study)}")
    parts.append(f"## nu\n\n{nu_table(entries)}")
    runs = sum(len(entry.rows) for entry in entries.values())
    hours = sum(float(row["wall_seconds"]) for entry in entries.values() for row in entry.rows.values()) / 3600
    parts.append(f"{runs} runs, {hours:.2f} core hours.")
    text = "\n\n".join(parts) + "\n"
    (folder / "tables.md").write_text(text, encoding="utf-8")
    print(text)
    for name, figure in draw_all(entries).items():
        save(figure, folder / "figures" / name)


if __name__ == "__main__":
    main()

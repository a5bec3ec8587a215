"""A step of 16 emulated workers against a plain loop over the same batch: AdamW, Ray, Orth-Dion."""

from __future__ import annotations

from analysis.benchmarks.case import Case, Question, Size, one_time, step_ratio
from analysis.benchmarks.decoder_sides import emulated, low_rank, plain


def case(size: Size) -> Case:
    orth_dion = {"optimizer.name": "orth_dion", "optimizer.lr": "1e-3", "optimizer.rank": low_rank(size)}
    ray = {"engine.actors": 2, "engine.block": "stacked"}
    adamw = "plain loop, AdamW"
    dense = "plain loop, Orth-Dion"
    sides = (
        plain(size, adamw, size.few, size.batch, size.steps),
        emulated(size, "stacked, AdamW", "stacked", size.few, size.batch, size.steps),
        emulated(size, "ray, AdamW", "ray", size.few, size.batch, size.steps, ray, threads=1),
        plain(size, dense, size.few, size.batch, size.steps, "orth_dion"),
        emulated(size, "stacked, Orth-Dion", "stacked", size.few, size.batch, size.steps, orth_dion),
    )
    what = f"{size.few} workers, step over plain loop"
    return Case(
        name="step_time",
        says=f"FSDP, {size.few} workers with {size.batch} sequences of {size.context} bytes each",
        sides=sides,
        questions=(
            Question(f"FSDP AdamW, stacked: {what}", step_ratio("stacked, AdamW", adamw), "x", 1.15),
            Question(
                f"FSDP AdamW, ray, 2 actors of stacked blocks: {what}", step_ratio("ray, AdamW", adamw), "x", 1.35
            ),
            Question(f"FSDP Orth-Dion, stacked: {what}", step_ratio("stacked, Orth-Dion", dense), "x", 1.3),
            *one_time(*(side.name for side in sides)),
        ),
        rounds=size.rounds,
        agree=((adamw, "stacked, AdamW", "ray, AdamW"), (dense, "stacked, Orth-Dion")),
    )

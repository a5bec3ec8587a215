"""What pricing, ledger, trace and tables take of a run, beside the engine's bare loop of steps."""

from __future__ import annotations

import statistics

from analysis.benchmarks.case import WARM_UP, Case, Question, Sample, Size
from analysis.benchmarks.decoder_sides import emulated, low_rank


def share_of_run(sample: Sample) -> float:
    """Return the share of a run, from the engine's start to the finished folder, in which no engine is at work."""
    return float(sample["recording_seconds"] / sample["recorded_seconds"])


def share_of_step(sample: Sample) -> float:
    """Return the share of a steady step that the engine is not at work."""
    pairs = zip(sample["step_seconds"][WARM_UP:], sample["engine_step_seconds"][WARM_UP:], strict=True)
    return float(statistics.median(1 - engine / step for step, engine in pairs))


def case(size: Size) -> Case:
    steps = size.steps if size.quick else 2 * size.steps
    orth_dion = {"optimizer.name": "orth_dion", "optimizer.lr": "1e-3", "optimizer.rank": low_rank(size)}
    sides = {
        "AdamW": emulated(size, "AdamW", "stacked", size.few, size.batch, steps),
        "Orth-Dion": emulated(size, "Orth-Dion", "stacked", size.few, size.batch, steps, orth_dion),
    }
    return Case(
        name="recording",
        says=f"FSDP, {size.few} workers, stacked, {steps} steps: time outside the engine",
        sides=tuple(sides.values()),
        questions=tuple(question for name in sides for question in questions(name)),
        rounds=size.rounds,
    )


def questions(name: str) -> tuple[Question, ...]:
    """Return what is asked of one side."""
    return (
        Question(f"{name}: recording, share of the run", lambda found: share_of_run(found[name]), "%", 0.05),
        Question(f"{name}: recording, share of a steady step", lambda found: share_of_step(found[name]), "%"),
    )

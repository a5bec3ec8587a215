"""Hundreds of emulated workers with one sequence each, against a plain loop over the same batch: time and memory."""

from __future__ import annotations

from analysis.benchmarks.case import Case, Question, Size, more_memory, one_time, step_ratio
from analysis.benchmarks.decoder_sides import emulated, plain

#: workers -> the target for the step's time over the plain loop's
STEP_TARGETS = {256: 1.5, 1024: 2.0}
#: bytes over the plain loop's
MEMORY_TARGETS = {1024: 1.5e9}


def case(size: Size) -> Case:
    steps = max(4, size.steps // 2)
    sides, questions, agree, points = [], [], [], []
    for count in size.many:
        base, own = f"plain loop, batch {count}", f"stacked, {count} workers"
        sides += [
            plain(size, base, count, 1, steps),
            emulated(size, own, "stacked", count, 1, steps),
        ]
        shape = f"{count} workers (FSDP, batch 1)"
        questions += [
            Question(f"{shape}: step over plain loop", step_ratio(own, base), "x", STEP_TARGETS.get(count)),
            Question(f"{shape}: peak RSS over plain loop's", more_memory(own, base), "B", MEMORY_TARGETS.get(count)),
            *one_time(own),
        ]
        agree.append((base, own))
        # continues the peers' figure
        points.append(("simdist stacked", count, own, base))
    return Case(
        name="many_workers",
        says=f"AdamW, stacked, one sequence of {size.context} bytes a worker",
        sides=tuple(sides),
        questions=tuple(questions),
        rounds=size.rounds,
        agree=tuple(agree),
        details={"overhead": points},
    )

"""What a user would do instead: PyTorch with a gloo process per worker, and PyTorch's LocalTensorMode."""

from __future__ import annotations

from analysis.benchmarks.case import Case, Question, Side, Size, one_time_seconds, side_command, step_ratio
from analysis.benchmarks.decoder_sides import emulated, model, plain


def case(size: Size) -> Case:
    counts = (2,) if size.quick else (4, 8, 16)
    steps = size.steps if size.quick else 5
    sides: list[Side] = []
    questions: list[Question] = []
    agree: list[tuple[str, ...]] = []
    points: list[tuple[str, int, str, str]] = []
    for count in counts:
        shape = ("--model", model(size), "--workers", count, "--batch", size.batch, "--steps", steps)
        base = f"plain loop, {count}"
        here = [
            emulated(size, f"simdist stacked, {count}", "stacked", count, size.batch, steps),
            *(
                Side(
                    f"gloo {name}, {count}",
                    side_command("gloo_workers", *shape, "--method", method),
                    f"{count} processes of one thread, {says}, AdamW",
                    threads=1,
                )
                for method, name, says in (("ddp", "DDP", "DistributedDataParallel"), ("fsdp2", "FSDP2", "fully_shard"))
            ),
            Side(
                f"LocalTensorMode, {count}",
                side_command("local_tensor", *shape),
                "one process, FSDP's algorithm on DTensors, AdamW",
            ),
        ]
        sides += [plain(size, base, count, size.batch, steps), *here]
        agree.append((base, *(side.name for side in here)))
        for side in here:
            questions += asked(side.name, base, count)
            points.append((side.name.rpartition(",")[0], count, side.name, base))
    return Case(
        name="torch_peers",
        says=f"the same decoder, {size.batch} sequences of {size.context} bytes per worker",
        sides=tuple(sides),
        questions=tuple(questions),
        rounds=size.peer_rounds,
        agree=tuple(agree),
        details={"overhead": points},
    )


def asked(name: str, base: str, workers: int) -> tuple[Question, ...]:
    """Return what is asked of one side; these are comparisons, so nothing is a target."""
    return (
        Question(f"{name} workers: step over plain loop", step_ratio(name, base), "x"),
        Question(f"{name} workers: memory per worker", lambda found: found[name]["peak_rss_bytes"] / workers, "B"),
        Question(f"once: {name} workers", lambda found: one_time_seconds(found[name]), "s"),
    )

"""Cost of a step per worker from 16 to 4,096 workers, inline and stacked: linear or better."""

from __future__ import annotations

from analysis.benchmarks.case import Case, Question, Round, Side, Size, side_command

FULL = (16, 64, 256, 1024, 4096)
QUICK = (16, 32)


def growth(found: Round, engine: str) -> float:
    """Return the largest cost per worker of any number of workers, over that of the fewest."""
    seconds = {int(count): value for count, value in found[engine]["step_seconds_by_workers"].items()}
    fewest = min(seconds)
    each = {count: value / count for count, value in seconds.items()}
    return float(max(each[count] for count in each if count > fewest) / each[fewest])


def case(size: Size) -> Case:
    workers = QUICK if size.quick else FULL
    listed = ",".join(map(str, workers))
    return Case(
        name="cost_per_worker",
        says="teacher, 4 matrices of 64 x 48, HSDP with 16 shards; each a whole run",
        sides=tuple(
            Side(
                engine,
                side_command("teacher_scaling", "--engine", engine, "--workers", listed, "--steps", 3),
                f"simdist run, engine {engine}, {threads} threads",
                threads=threads,
            )
            for engine, threads in (("inline", 1), ("stacked", size.threads))
        ),
        questions=tuple(question(engine, workers) for engine in ("inline", "stacked")),
        rounds=size.rounds,
    )


def question(engine: str, workers: tuple[int, ...]) -> Question:
    """Return what is asked of one engine."""
    what = f"teacher, {engine}: most cost per worker up to {workers[-1]:,} over that at {workers[0]}"
    return Question(what, lambda found: growth(found, engine), "x", 1.0)

"""What a case is: sides that are measured in turns, the numbers asked of every round, and the targets for them.

Each file in ``cases/`` has a function ``case(size: Size) -> Case``; :func:`all_cases` finds them: a new case is a new
file.
"""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SIDES = "analysis.benchmarks.sides"

#: what one side said in one round: what it printed as JSON, and what the parent saw of its process
Sample = Mapping[str, Any]
#: one sample of every side, taken one after the other
Round = Mapping[str, Sample]
#: ``x``: a ratio; ``%``: a share; ``s`` and ``B``: seconds and bytes
Unit = Literal["x", "%", "s", "B"]


@dataclass(frozen=True)
class Size:
    """How much is measured: the full benchmark, or a smoke run with tiny models that says nothing about speed.

    Attributes:
        quick: for the few choices that are no numbers below.
        rounds: samples of every side.
        peer_rounds: the same for cases whose sides are slow: fewer in a smoke run.
        threads: torch's threads, the same on all sides; where a side has several processes they share them.
        width, depth, context: of the decoder.
        batch: sequences per worker where the workers are few.
        few: workers of the cases on step time.
        many: workers of the cases on scale, from few to many; a sequence per worker.
        steps: of the cases on step time; the first ``WARM_UP`` are not counted.
        flower_python: the interpreter of the environment that Flower is installed in.
    """

    quick: bool
    rounds: int
    peer_rounds: int
    threads: int
    width: int
    depth: int
    context: int
    batch: int
    few: int
    many: tuple[int, ...]
    steps: int
    flower_python: Path


FULL = Size(False, 5, 5, 2, 128, 5, 64, 8, 16, (256, 1024), 8, ROOT / "build" / "flower" / "bin" / "python")
QUICK = Size(True, 2, 1, 1, 16, 1, 8, 1, 4, (8,), 4, FULL.flower_python)

#: the first step also starts engines and prices; the second still meets a cold allocator
WARM_UP = 2


@dataclass(frozen=True)
class Side:
    """One way of doing the case's work: a command that runs in a fresh process.

    Attributes:
        name: for table and figure.
        argv: without the interpreter; ``{scratch}`` stands for an empty folder that is removed afterwards.
        says: what it does, so that readers can judge whether the comparison is fair.
        python: the interpreter; default this one.
        tuned: a command that is run once beforehand, and prints more arguments for ``argv`` as JSON.
        before: a command of this interpreter that is run before every sample, in the same folder, and not measured.
        reports: whether its last line is JSON.
        threads: of each of its processes; default: the size's.
    """

    name: str
    argv: tuple[str, ...]
    says: str
    python: Path | None = None
    tuned: tuple[str, ...] | None = None
    before: tuple[str, ...] | None = None
    reports: bool = True
    threads: int | None = None


@dataclass(frozen=True)
class Question:
    """A number that every round answers; the median over rounds is the finding.

    Attributes:
        what: in words, for the table.
        of: computes it from a round, so that ratios are of samples taken side by side.
        limit: the target: at most so much. None: shown for comparison only.
        note: what bounds it where the target is missed, or what else to know.
    """

    what: str
    of: Callable[[Round], float]
    unit: Unit
    limit: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        name: for ``--only``.
        says: one line about the work that all sides do.
        agree: groups of sides whose losses must agree to ``tolerance`` (relative), step by step: proof that they do
            the same work.
        missing: why the case cannot be measured here (no GPU, ...); None if it can.
        limit_seconds: after which a sample is given up.
    """

    name: str
    says: str
    sides: tuple[Side, ...]
    questions: tuple[Question, ...]
    rounds: int
    agree: tuple[tuple[str, ...], ...] = ()
    tolerance: float = 2e-3
    missing: str | None = None
    limit_seconds: float = 600.0
    details: Mapping[str, Any] = field(default_factory=dict)


def step_seconds(sample: Sample) -> float:
    """Return the steady time of a step: the median without the warm-up."""
    return float(statistics.median(sample["step_seconds"][WARM_UP:]))


def one_time_seconds(sample: Sample) -> float:
    """Return what a side takes besides steady steps: its start, and what the first steps cost beyond a usual one."""
    first = sample["step_seconds"][:WARM_UP]
    return float(sample["start_seconds"] + sum(first) - len(first) * step_seconds(sample))


def step_ratio(side: str, base: str) -> Callable[[Round], float]:
    """Return a question's ``of``: one side's steady step over another's."""
    return lambda found: step_seconds(found[side]) / step_seconds(found[base])


def more_memory(side: str, base: str, besides: float = 0.0) -> Callable[[Round], float]:
    """Return a question's ``of``: one side's peak RSS over another's, in bytes, less ``besides``."""
    return lambda found: float(found[side]["peak_rss_bytes"] - found[base]["peak_rss_bytes"] - besides)


def one_time(*sides: str) -> tuple[Question, ...]:
    """Return questions that show what sides take once: start, first step, first pricing."""

    def asked(side: str) -> Question:
        return Question(f"once: {side}", lambda found: one_time_seconds(found[side]), "s")

    return tuple(map(asked, sides))


def side_command(module: str, *arguments: object) -> tuple[str, ...]:
    """Return the argv of a script in ``sides/``."""
    return ("-m", f"{SIDES}.{module}", *map(str, arguments))


def all_cases(size: Size) -> dict[str, Case]:
    """Return every case of ``cases/`` by name, in the order of the file names."""
    modules = sorted(path.stem for path in (HERE / "cases").glob("[a-z]*.py"))
    found = [importlib.import_module(f"analysis.benchmarks.cases.{module}").case(size) for module in modules]
    return {case.name: case for case in found}

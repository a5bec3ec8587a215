"""What a run of one step takes from the shell, over the import of torch alone."""

from __future__ import annotations

from analysis.benchmarks.case import ROOT, Case, Question, Round, Side, Size

SETTINGS = ("--engine", "inline", "--set", "steps=1", "--out", "{scratch}/run", "--quiet")


def over_torch(found: Round) -> float:
    """Return the seconds that simdist takes beside the import of torch."""
    return float(found["simdist run"]["wall_seconds"] - found["import torch"]["wall_seconds"])


def case(size: Size) -> Case:
    return Case(
        name="start_up",
        says="scenarios/quickstart.py with steps=1, inline",
        sides=(
            Side("import torch", ("-c", "import torch"), 'python -c "import torch"', reports=False, threads=1),
            Side(
                "simdist run",
                ("-m", "simdist.cli", "run", str(ROOT / "scenarios" / "quickstart.py"), *SETTINGS),
                "simdist run scenarios/quickstart.py " + " ".join(SETTINGS[:4]),
                reports=False,
                threads=1,
            ),
        ),
        questions=(
            Question("simdist run of one step, inline, over import torch", over_torch, "s", 2.0),
            Question("once: import torch", lambda found: float(found["import torch"]["wall_seconds"]), "s"),
        ),
        rounds=size.rounds,
    )

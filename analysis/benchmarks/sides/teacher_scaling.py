"""What a step costs with more and more workers: ``teacher`` under HSDP with 16 shards, one engine, one process.

Runs of each size, one after the other; each is a whole `simdist run` with clock, ledger and tables. Prints the steady
time of a step and what the first step took (start, first pricing) for every number of workers.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from itertools import pairwise
from pathlib import Path

from analysis.benchmarks.sides.report import peak_rss_bytes, report
from simdist import Scenario
from simdist.execution.settings import EngineSettings
from simdist.network import Star
from simdist.optimizers import AdamW
from simdist.results.tables import read_run
from simdist.running import run
from simdist.scenario import MeshSettings
from simdist.workloads import Teacher

SHARDS = 16


def walls(workers: int, engine: str, steps: int) -> list[float]:
    """Run and return what each step took, the last one, which also validates, left out."""
    scenario = Scenario(
        name="teacher",
        steps=steps + 1,
        workload=Teacher(rows=64, columns=48, matrices=4),
        mesh=MeshSettings(replicas=workers // SHARDS, shards=SHARDS),
        optimizer=AdamW(lr=1e-2),
        network=Star(bandwidth="1Gbit/s", latency="100us"),
        engine=EngineSettings.model_validate({"name": engine, "threads": int(os.environ.get("OMP_NUM_THREADS", "1"))}),
    )
    with tempfile.TemporaryDirectory() as folder:
        ends = read_run(run(scenario, out=Path(folder) / "run", progress=False)).steps["wall_seconds"]
    return [float(after - before) for before, after in pairwise([0.0, *ends])][:-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engine", default="inline")
    parser.add_argument("--workers", default="16,64,256,1024,4096")
    parser.add_argument("--steps", type=int, default=4)
    given = parser.parse_args()
    walls(SHARDS, given.engine, 2)  # the first run of a process imports and warms up
    found = {int(count): walls(int(count), given.engine, given.steps) for count in given.workers.split(",")}
    report(
        step_seconds_by_workers={count: statistics.median(seconds[1:]) for count, seconds in found.items()},
        first_step_seconds_by_workers={count: seconds[0] for count, seconds in found.items()},
        peak_rss_bytes=peak_rss_bytes(),
    )


if __name__ == "__main__":
    main()

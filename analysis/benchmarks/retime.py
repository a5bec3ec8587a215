"""What `simdist retime` takes for 100 networks, against what the training took.

    python analysis/benchmarks/retime.py [--run RUN] [--out retime.json]

Without --run, the main job's scenario is trained for 200 steps first (0.49 M parameters, 2 x 4 workers, inline). Wall
and CPU seconds are of the whole command, imports and start of the interpreter included; the targets are 10 s and 5 % of
the training.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SIMDIST = (sys.executable, "-m", "simdist.cli")
TRAINING = ("run", "scenarios/bandwidth_vs_convergence.py", "--engine", "inline", "--set", "steps=200", "--quiet")
#: 1 Mbit/s to 100 Gbit/s
BANDWIDTHS = [round(10 ** (6 + 5 * place / 99)) for place in range(100)]


def timed(*arguments: str) -> dict[str, float]:
    """Run one command of simdist and return its wall and CPU seconds, processes that it starts included."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run([*SIMDIST, *arguments], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_seconds": round(wall, 2), "cpu_seconds": round(cpu, 2)}


def retimed(run: Path, count: int, scratch: Path, repeats: int) -> dict[str, float]:
    """Re-time a run under the first so many networks; return the least of several timings."""
    over = "network.bandwidth=" + ",".join(map(str, BANDWIDTHS[:count]))
    found = []
    for _ in range(repeats):
        found.append(timed("retime", str(run), "--over", over, "--out", str(scratch / "retimed")))
        shutil.rmtree(scratch / "retimed")
    return {key: min(one[key] for one in found) for key in found[0]}


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, help="a finished run, whose summary says how long the training took")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args(arguments)

    with tempfile.TemporaryDirectory() as scratch:
        run = given.run or Path(scratch) / "run"
        training = None if given.run else timed(*TRAINING, "--out", str(run))
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        found = {count: retimed(run.resolve(), count, Path(scratch), given.repeats) for count in (1, len(BANDWIDTHS))}
        least = found[len(BANDWIDTHS)]
        result: dict[str, Any] = {
            "run": {key: summary[key] for key in ("name", "engine", "workers", "steps", "wall_seconds")},
            "training_command": training,
            "retime_by_networks": found,
            "share_of_training_wall": round(least["wall_seconds"] / summary["wall_seconds"], 4),
            "machine": {"cpus": os.cpu_count(), "load_average": os.getloadavg(), "platform": platform.platform()},
        }
        if training:
            result["share_of_training_cpu"] = round(least["cpu_seconds"] / training["cpu_seconds"], 4)
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

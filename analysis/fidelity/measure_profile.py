"""Measure how long one worker computes in this process, and write it as a profile for ``compute.profile``.

    python -m analysis.fidelity.measure_profile SCENARIO --out profile.yaml [--set KEY=VALUE]

Times the forward and the backward pass of worker 0's batch, all units together, as the loss is one function of all
parameters: simdist shares them among the units by their roofline times. The optimizer's seconds depend on how a mesh
shards its states; they are left to the roofline, or are yours to add.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from simdist.assembly import build_task
from simdist.loading import load_scenario
from simdist.workloads.workload import Task
from simdist.yaml_text import dump


def measure(task: Task, repeats: int, warmup: int = 3) -> dict[str, list[float]]:
    """Return the wall seconds of each repeat of ``forward`` and ``backward``, after some that do not count."""
    leaves = {name: x.detach().requires_grad_() for name, x in task.initial().items()}
    seconds: dict[str, list[float]] = {"forward": [], "backward": []}
    for repeat in range(warmup + repeats):
        batch = task.batch(0, repeat + 1)
        times = [_now()]
        loss = task.loss(leaves, batch)
        times.append(_now())
        torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        times.append(_now())
        if repeat >= warmup:
            seconds["forward"].append(times[1] - times[0])
            seconds["backward"].append(times[2] - times[1])
    return seconds


def _now() -> float:
    if torch.cuda.is_available():  # kernels run on after the call that starts them
        torch.cuda.synchronize()
    return time.perf_counter()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure a scenario's forward and backward pass.")
    parser.add_argument("scenario")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args(arguments)
    found = measure(build_task(load_scenario(options.scenario, options.set)), options.repeats)
    for name, seconds in found.items():
        print(f"{name}: median {statistics.median(seconds):.6f} s, from {min(seconds):.6f} to {max(seconds):.6f} s")
    options.out.write_text(dump({name: statistics.median(seconds) for name, seconds in found.items()}), "utf-8")


if __name__ == "__main__":
    main()

"""The lower bound: one process, the whole batch of all workers, torch.optim, and nothing else.

The batches are drawn before the clock starts. The whole batch goes through in micro-batches of ``--micro`` sequences,
whose gradients add up; ``--choose-micro`` prints the size at which a sequence takes least time here.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Protocol

import torch
from torch import Tensor

from analysis.benchmarks.sides.dense_orth_dion import DenseOrthDion
from analysis.benchmarks.sides.report import peak_rss_bytes, report, since_start
from analysis.benchmarks.sides.work import BETAS, LR, arguments, batches, decoder
from simdist.workloads.workload import Task

Parameters = dict[str, Tensor]


class Optimizer(Protocol):
    """What the loop needs of an optimizer."""

    def step(self) -> object: ...

    def zero_grad(self) -> None: ...


def make_optimizer(name: str, rank: int, task: Task, params: Parameters) -> Optimizer:
    """Return torch's AdamW, or a dense Orth-Dion with it for all but hidden matrices."""
    if name == "adamw":
        return torch.optim.AdamW(params.values(), lr=LR, betas=BETAS, weight_decay=0.0, fused=True)
    hidden = {spec.name for unit in task.units for spec in unit.params if spec.role == "matrix"}
    return DenseOrthDion(
        {name: x for name, x in params.items() if name in hidden},
        [x for name, x in params.items() if name not in hidden],
        rank,
        LR,
    )


def leaves_of(task: Task) -> Parameters:
    """Return the task's first parameters as autograd's leaves."""
    return {name: x.requires_grad_() for name, x in task.initial().items()}


def backward(task: Task, params: Parameters, tokens: Tensor, micro: int) -> float:
    """Add the gradient of the mean loss over all sequences to the leaves, and return that loss."""
    total = 0.0
    for part in tokens.split(micro):
        loss = task.loss(params, (part,)) * (len(part) / len(tokens))
        loss.backward()
        total += loss.item()
    return total


def fastest_micro(task: Task, most: int) -> int:
    """Return the number of sequences in a pass, a power of two, at which one of them takes least time."""
    params = leaves_of(task)
    found: dict[int, float] = {}
    tokens = task.batch(0, 0)[0][:1].expand(most, -1)
    sizes = [2**power for power in range(2, most.bit_length()) if 2**power <= most] or [most]
    for micro in sizes:
        times = []
        for _ in range(4):
            began = time.perf_counter()
            backward(task, params, tokens[:micro], micro)
            times.append((time.perf_counter() - began) / micro)
        found[micro] = statistics.median(times[1:])
    return min(found, key=lambda micro: found[micro])


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--optimizer", choices=("adamw", "orth_dion"), default="adamw")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--micro", type=int, default=64)
    parser.add_argument("--choose-micro", action=argparse.BooleanOptionalAction, default=False)
    given = parser.parse_args()
    task = decoder(given)
    if given.choose_micro:
        report(arguments=["--micro", str(fastest_micro(task, given.workers * given.batch))])
        return
    params = leaves_of(task)
    optimizer = make_optimizer(given.optimizer, given.rank, task, params)
    data = [torch.cat(step) for step in batches(task, given.workers, given.steps)]
    start, steps, losses = since_start(), [], []
    for tokens in data:
        began = time.perf_counter()
        losses.append(backward(task, params, tokens, given.micro))
        optimizer.step()
        optimizer.zero_grad()
        if given.device != "cpu":
            torch.accelerator.synchronize()
        steps.append(time.perf_counter() - began)
    report(start_seconds=start, step_seconds=steps, losses=losses, peak_rss_bytes=peak_rss_bytes())


if __name__ == "__main__":
    main()

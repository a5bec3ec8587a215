"""The work that the sides share: a workload's task, from one set of arguments."""

from __future__ import annotations

import argparse
import os

import torch
from torch import Tensor

from analysis.benchmarks.sides.autocast import Autocast
from simdist.workloads import ByteGPT
from simdist.workloads.workload import Task

#: learning rate of AdamW on all sides, and of hidden matrices under Orth-Dion
LR = 1e-3
BETAS = (0.9, 0.95)


def arguments(what: str | None) -> argparse.ArgumentParser:
    """Return a parser for the sides that train the decoder without simdist."""
    parser = argparse.ArgumentParser(description=(what or "").splitlines()[0])
    parser.add_argument("--model", default="128,5,64,4", help="width, depth, context and heads of the decoder")
    parser.add_argument("--hidden", type=int, help="inner size of its MLP")
    parser.add_argument("--autocast", action="store_true", help="compute in bfloat16")
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8, help="sequences per worker")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    return parser


def decoder(given: argparse.Namespace) -> Task:
    """Return the task that a scenario with these numbers trains on: same data, same first weights."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    width, depth, context, heads = (int(number) for number in given.model.split(","))
    settings = ByteGPT(
        width=width,
        depth=depth,
        heads=heads,
        context=context,
        hidden=given.hidden,
        batch=given.batch,
        validation_batches=1,
    )
    task = settings.build(0, torch.float32, torch.device(given.device))
    return Autocast(task, given.device) if given.autocast else task


def batches(task: Task, workers: int, steps: int) -> list[list[Tensor]]:
    """Return every worker's tokens of every step, as simdist's workers draw them."""
    return [[task.batch(worker, step)[0] for worker in range(workers)] for step in range(1, steps + 1)]


def mean(values: list[float]) -> float:
    """Return the mean of some losses."""
    return sum(values) / len(values)

"""What a user does without an emulator: one process per worker, gloo between them, DDP or FSDP2.

Every process has one torch thread. Step times are those of worker 0, which waits for the others in every step; memory
is the sum over all processes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import queue
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from analysis.benchmarks.sides.modules import Decoder
from analysis.benchmarks.sides.report import peak_rss_bytes, report, since_start
from analysis.benchmarks.sides.work import BETAS, LR, arguments, decoder, mean
from simdist.workloads.byte_gpt import ByteGPTTask


def ddp(model: Decoder, workers: int) -> nn.Module:
    """DDP with its default buckets."""
    return DistributedDataParallel(model)


def fsdp2(model: Decoder, workers: int) -> nn.Module:
    """``fully_shard`` on every block and on the rest."""
    mesh = init_device_mesh("cpu", (workers,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


METHODS = {"ddp": ddp, "fsdp2": fsdp2}


def worker(index: int, given: argparse.Namespace, meeting: str, results: Any) -> None:
    """Train as worker ``index`` and put (index, start, step times, losses, peak RSS) in the queue."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=index, world_size=given.workers)
    task = decoder(given)
    assert isinstance(task, ByteGPTTask)
    model = METHODS[given.method](Decoder(task), given.workers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=BETAS, weight_decay=0.0)
    data = [task.batch(index, step)[0] for step in range(1, given.steps + 1)]
    dist.barrier()
    start, steps, losses = since_start(), [], []
    for tokens in data:
        began = time.perf_counter()
        loss = model(tokens)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        steps.append(time.perf_counter() - began)
        losses.append(loss.item())
    results.put((index, start, steps, losses, peak_rss_bytes()))
    # a process that leaves first would cut the others' last messages short
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--method", choices=sorted(METHODS), default="ddp")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        meeting = str(Path(folder) / "meeting")
        group: Any = spawn(worker, (given, meeting, results), nprocs=given.workers, join=False)
        found: list[tuple[int, float, list[float], list[float], int]] = []
        while len(found) < given.workers:
            try:
                found.append(results.get(timeout=1))
            except queue.Empty:
                group.join(timeout=0)  # raises what a worker raised
        while not group.join():
            pass
    found.sort()
    _, start, steps, _, _ = found[0]
    rss = [peak for *_, peak in found]
    report(
        start_seconds=start,
        step_seconds=steps,
        losses=[mean(list(step)) for step in zip(*(losses for _, _, _, losses, _ in found), strict=True)],
        peak_rss_bytes=sum(rss),
        peak_rss_bytes_per_worker=sum(rss) / len(rss),
    )


if __name__ == "__main__":
    main()

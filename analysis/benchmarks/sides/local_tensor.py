"""PyTorch's LocalTensorMode: one process that holds every worker's tensors and does the collectives' mathematics.

With torch 2.13 ``fully_shard`` does not run under the mode: it frees gathered parameters by resizing their storage,
which a LocalTensor does not have ("Attempted to call resize_() on an invalid python storage"). What runs, and is
measured, is FSDP's algorithm on DTensors (as in SimpleFSDP, arXiv 2411.00284): parameters ``Shard(0)``, gathered by
``redistribute`` before forward, gradients reduce-scattered by its backward, AdamW on shards.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._local_tensor import LocalTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from analysis.benchmarks.sides.report import peak_rss_bytes, report, since_start
from analysis.benchmarks.sides.work import BETAS, LR, arguments, decoder, mean
from simdist.workloads import Task


def tokens_of(task: Task, step: int, worker: int) -> Tensor:
    """Return a worker's tokens of a step."""
    return task.batch(worker, step)[0]


def main() -> None:
    given = arguments(__doc__).parse_args()
    task = decoder(given)
    dist.init_process_group("fake", rank=0, world_size=given.workers, store=FakeStore())
    mode = LocalTensorMode(given.workers)
    steps, losses = [], []
    with mode:
        mesh = init_device_mesh("cpu", (given.workers,))
        # DTensors, which torch's annotations take for plain parameters
        params: dict[str, Any] = {
            name: torch.nn.Parameter(distribute_tensor(x, mesh, [Shard(0)])) for name, x in task.initial().items()
        }
        optimizer = torch.optim.AdamW(params.values(), lr=LR, betas=BETAS, weight_decay=0.0)
        data = [mode.rank_map(partial(tokens_of, task, step)) for step in range(1, given.steps + 1)]
        start = since_start()
        for tokens in data:
            began = time.perf_counter()
            full = {
                name: x.redistribute(mesh, [Replicate()]).to_local(grad_placements=[Partial("avg")])
                for name, x in params.items()
            }
            loss: Any = task.loss(full, (tokens,))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            steps.append(time.perf_counter() - began)
            with mode.disable():
                losses.append(mean([float(own) for own in loss._local_tensors.values()]))
    report(start_seconds=start, step_seconds=steps, losses=losses, peak_rss_bytes=peak_rss_bytes())


if __name__ == "__main__":
    main()

"""How much computing a step is: one of several processes that train beside each other, without a network.

``python profile_worker.py METHOD STEPS WARMUP``: the method's own code runs as in
:mod:`analysis.fidelity.training.worker`, hooks and copies included, but collectives deliver nothing and take no time.
Prints the median CPU seconds of a step's forward pass, backward pass (with what a method does to gradients) and
optimizer. CPU seconds do not depend on who shares a core; how many processes share one is the caller's to say. But they
depend on caches: processes pause between steps, as they do for the network, so that they take turns on a core.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore

from analysis.fidelity.training.methods import Training

#: seconds without computing in a step, about as long as the fastest measured network takes
PAUSE = 0.05


class Delivered:
    """A collective that is over at once."""

    def __init__(self, result: list[Tensor]) -> None:
        self._future: torch.futures.Future[Any] = torch.futures.Future()
        self._future.set_result(result)

    def get_future(self) -> torch.futures.Future[Any]:
        return self._future


def deliver_nothing(method: str, training: Training) -> None:
    """Stand in for what the fake process group lacks: reductions whose futures have a value."""
    if method == "ddp":
        assert isinstance(training.model, DistributedDataParallel)
        training.model.register_comm_hook(None, lambda _, bucket: _done(bucket.buffer()))
    dist.all_reduce = lambda tensor, **_: Delivered([tensor])


def _done(value: Tensor) -> torch.futures.Future[Any]:
    future: torch.futures.Future[Any] = torch.futures.Future()
    future.set_result(value)
    return future


def main(method: str, steps: int, warmup: int) -> None:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    # nothing is gathered, so that parameters hold whatever was in memory; denormal numbers there would be slow
    torch.set_flush_denormal(True)
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    training = Training.of(method, rank, world)
    deliver_nothing(method, training)
    seconds: dict[str, list[float]] = {"forward": [], "backward": [], "optimizer": []}
    for step in range(warmup + steps):
        times = [time.process_time()]
        loss = training.forward()
        times.append(time.process_time())
        loss.backward()
        times.append(time.process_time())
        training.update()
        times.append(time.process_time())
        time.sleep(PAUSE)
        if step >= warmup:
            for name, start, end in zip(seconds, times, times[1:], strict=False):
                seconds[name].append(end - start)
    print(json.dumps({name: statistics.median(found) for name, found in seconds.items()}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

"""One of the processes that train for real; run by :mod:`analysis.fidelity.training.measure` on every host.

``python worker.py METHOD STEPS WARMUP`` prints when each step ended (one clock for all hosts, which share a machine)
and how many bytes this host sent in the steps after the warm-up.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

import torch
import torch.distributed as dist

from analysis.fidelity.real_links.links import own_tx_bytes
from analysis.fidelity.training.methods import Training


def main(method: str, steps: int, warmup: int) -> None:
    dist.init_process_group("gloo")
    training = Training.of(method, dist.get_rank(), dist.get_world_size())
    for _ in range(warmup):
        training.step()
    dist.barrier()
    sent = own_tx_bytes()
    ends = [time.perf_counter()]
    for _ in range(steps):
        training.step()
        ends.append(time.perf_counter())
    print(json.dumps({"ends": ends, "tx_bytes": own_tx_bytes() - sent}))
    # a process that leaves first would cut the others' last messages short
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

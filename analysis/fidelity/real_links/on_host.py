"""What every host runs: gloo's collectives, timed on the one clock that all processes of a machine share.

Takes a JSON list of [op, payload_bytes, repeats]; prints a JSON list of what this host saw of each (see ``Seen``).
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable
from typing import TypedDict

import torch
import torch.distributed as dist

from analysis.fidelity.real_links.links import own_tx_bytes

#: repeats that are run before the measured ones: windows open, buffers grow
WARM_UP = 2
#: host 0 begins this much later than the others (s). In a training step, too, hosts never begin at the same instant,
#: and gloo's all-gather between two hosts takes half as long again if they do not (see ../README.md)
LATE = 0.003
#: between agreeing on an instant and that instant (s): the last host must hear of it, and links fall idle
AHEAD = 0.03


class Seen(TypedDict):
    """One host's view of a case: readings of the clock in seconds, and means over all repeats."""

    starts: list[float]
    ends: list[float]
    tx_bytes: float
    cpu_seconds: float


def main() -> None:
    cases: list[tuple[str, int, int]] = json.loads(sys.argv[1])
    dist.init_process_group("gloo")
    gc.disable()  # a collection in the midst of a repeat would be measured too
    _seen(lambda: None, 10)
    meeting = _seen(lambda: None, 10)["tx_bytes"]
    found = []
    for op, payload_bytes, repeats in cases:
        seen = _seen(_operation(op, payload_bytes), repeats)
        seen["tx_bytes"] -= meeting
        found.append(seen)
    dist.destroy_process_group()
    print(json.dumps(found))


def _seen(operation: Callable[[], object], repeats: int) -> Seen:
    starts, ends = [], []
    sent, busy = own_tx_bytes(), 0.0
    for _ in range(WARM_UP + repeats):
        _meet()
        used = time.process_time()
        starts.append(time.perf_counter())
        operation()
        ends.append(time.perf_counter())
        busy += time.process_time() - used
    _meet()  # what others still receive from here has gone by now
    each = WARM_UP + repeats
    sent = own_tx_bytes() - sent
    return {"starts": starts[WARM_UP:], "ends": ends[WARM_UP:], "tx_bytes": sent / each, "cpu_seconds": busy / each}


def _meet() -> None:
    """Wait for an instant that all hosts agree on: each proposes one, the latest is taken; host 0 comes ``LATE``."""
    instant = torch.tensor([time.perf_counter() + AHEAD], dtype=torch.float64)
    dist.all_reduce(instant, op=dist.ReduceOp.MAX)
    late = LATE if dist.get_rank() == 0 else 0.0
    time.sleep(max(0.0, instant.item() + late - time.perf_counter()))


def _operation(op: str, payload_bytes: int) -> Callable[[], object]:
    whole = torch.ones(payload_bytes // 4)
    part = torch.ones(payload_bytes // 4 // dist.get_world_size())
    first = dist.get_rank() == 0
    operations: dict[str, Callable[[], object]] = {
        "send": lambda: dist.send(whole, 1) if first else dist.recv(whole, 0),
        "all_reduce": lambda: dist.all_reduce(whole, op=dist.ReduceOp.MAX),
        "all_gather": lambda: dist.all_gather_into_tensor(whole, part),
        "reduce_scatter": lambda: dist.reduce_scatter_tensor(part, whole, op=dist.ReduceOp.MAX),
        "broadcast": lambda: dist.broadcast(whole, 0),
    }
    return operations[op]


if __name__ == "__main__":
    main()

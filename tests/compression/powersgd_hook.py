"""One of two gloo processes that train a tiny model under PyTorch's PowerSGD hook, and write what it made of gradients.

``python powersgd_hook.py FOLDER RANK STEPS VARIANTS``: loopback only, meeting by a file in FOLDER.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

os.environ["GLOO_SOCKET_IFNAME"] = "lo"

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

#: a matrix, a convolution, and a bias, which is not compressed
SHAPES = {"matrix": (12, 10), "conv": (8, 3, 2, 2), "bias": (5,)}


class Linear(torch.nn.Module):
    """A loss that is linear in the parameters, so that gradients are what is given."""

    def __init__(self) -> None:
        super().__init__()
        for name, shape in SHAPES.items():
            self.register_parameter(name, torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64)))

    def forward(self, gradients: dict[str, Tensor]) -> Tensor:
        terms = [(self.get_parameter(name) * gradient).sum() for name, gradient in gradients.items()]
        return torch.stack(terms).sum()


def gradients(step: int, rank: int) -> dict[str, Tensor]:
    """Return the gradients of a rank at a step from 0."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()}


def train(rank: int, steps: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the reduced gradients of every step, the numbers of every all-reduce of the hook, and DDP's order."""
    model = DistributedDataParallel(Linear())
    model.register_comm_hook(PowerSGDState(None, **settings), powerSGD_hook)
    reduced, sent, reduce = [], [], dist.all_reduce

    def counting(tensor: Tensor, *args: Any, **more: Any) -> Any:
        sent.append(tensor.numel())
        return reduce(tensor, *args, **more)

    dist.all_reduce = counting
    for step in range(steps):
        model.zero_grad()
        model(gradients(step, rank)).backward()
        reduced.append({name: x.grad.clone() for name, x in model.module.named_parameters()})
    dist.all_reduce = reduce
    return {"reduced": reduced, "sent": sent, "order": [name for name, _ in model.module.named_parameters()]}


def main(folder: Path, rank: int, steps: int, variants: dict[str, dict[str, Any]]) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    torch.save({key: train(rank, steps, settings) for key, settings in variants.items()}, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4]))

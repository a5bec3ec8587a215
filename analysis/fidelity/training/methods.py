"""The methods under test as PyTorch programs: how each wraps the model, and who steps it.

``DDP + AdamW``, ``DDP + PowerSGD hook + AdamW`` and ``FSDP2 + AdamW``, as a user would write them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from analysis.fidelity.training.model import BATCH, ByteGPT, loss, make_data

LR = 1e-3
#: PowerSGD's rank, and the steps before it begins (the hook needs two, as DDP rebuilds its buckets in between)
RANK, START = 4, 2
#: MiB: one bucket for all of the model. With several small ones the hook hung on 4 gloo processes, probably because
#: threads run its chained reductions of different buckets in orders that differ between ranks
ONE_BUCKET = 25


def ddp(module: ByteGPT, world: int) -> nn.Module:
    """DDP with its default buckets: 1 MiB first, then 25 MiB."""
    return DistributedDataParallel(module)


def powersgd(module: ByteGPT, world: int) -> nn.Module:
    """DDP with PyTorch's PowerSGD hook."""
    model = DistributedDataParallel(module, bucket_cap_mb=ONE_BUCKET)
    model.register_comm_hook(PowerSGDState(None, RANK, START), powerSGD_hook)
    return model


def fsdp(module: ByteGPT, world: int) -> nn.Module:
    """``fully_shard`` on every block and on the rest."""
    mesh = init_device_mesh("cpu", (world,))
    for block in module.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)
    return module


METHODS: dict[str, Callable[[ByteGPT, int], nn.Module]] = {"ddp": ddp, "powersgd": powersgd, "fsdp": fsdp}


@dataclass
class Training:
    """A model under a method, with its optimizer and one fixed batch."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    inputs: Tensor
    following: Tensor

    @classmethod
    def of(cls, method: str, rank: int, world: int) -> Training:
        torch.manual_seed(0)
        model = METHODS[method](ByteGPT(), world)
        inputs, following = (x[BATCH * rank : BATCH * (rank + 1)] for x in make_data().tensors)
        return cls(model, torch.optim.AdamW(model.parameters(), LR), inputs, following)

    def forward(self) -> Tensor:
        return loss(self.model(self.inputs), self.following)

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def step(self) -> None:
        self.forward().backward()
        self.update()

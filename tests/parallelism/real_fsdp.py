"""Training under PyTorch's own FSDP2 (``fully_shard``) or DDP, and the collectives that its dispatcher sees.

``python real_fsdp.py FOLDER WORLD`` does so in real gloo processes: loopback only, meeting by a file in FOLDER, where
they find their jobs and leave what they saw.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from simdist.assembly import build_task
from simdist.optimizers import AdamW
from simdist.scenario import Scenario
from simdist.workloads.callables import call, resolve
from simdist.workloads.module import ModuleWorkload

#: c10d operator -> simdist's name of it, and which of its arguments is the full message S
OPERATORS = {
    "_allgather_base_": ("all_gather", "output_tensor"),
    "_reduce_scatter_base_": ("reduce_scatter", "input_tensor"),
    "allreduce_": ("all_reduce", "tensors"),
    "broadcast_": ("broadcast", "tensors"),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Seen(NamedTuple):
    """One collective: its name, the size of its group, and the full message in bytes, as the ledger has them."""

    op: str
    group_size: int
    payload_bytes: int


class Collectives(TorchDispatchMode):
    """Notes every collective that is started inside, whatever its backend."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Seen] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            named = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)}
            op, message = OPERATORS[func.overloadpacket.__name__]
            tensors = [named[message]] if isinstance(named[message], Tensor) else named[message]
            group = dist.ProcessGroup.unbox(named["process_group"])
            self.seen.append(Seen(op, group.size(), sum(x.nbytes for x in tensors)))
        return func(*args, **(kwargs or {}))


class Trained(NamedTuple):
    """The collectives of every step, and the parameters after the last one, under simdist's names and shapes."""

    steps: list[list[Seen]]
    params: dict[str, Tensor]


@contextmanager
def fake_processes(world: int) -> Iterator[None]:
    """Make this process rank 0 of a world whose collectives deliver nothing; what is asked of them is seen as ever."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    try:
        yield
    finally:
        dist.destroy_process_group()


def train(
    scenario: Scenario,
    *,
    ddp: bool = False,
    ignore_frozen: bool = False,
    watched: AbstractContextManager[object] | None = None,
) -> Trained:
    """Train the scenario's module on its mesh, from its parameters and batches, with PyTorch's distribution and AdamW.

    Args:
        ddp: DistributedDataParallel in place of ``fully_shard`` on every unit of the workload and on the module.
        ignore_frozen: ``fully_shard`` leaves alone what is not trained.
        watched: entered for the steps.
    """
    workload, rule = scenario.workload, scenario.optimizer
    assert isinstance(workload, ModuleWorkload)
    assert isinstance(rule, AdamW)
    task = build_task(scenario)
    module: nn.Module = call(workload.model, "model")
    own = dict(module.named_parameters())
    with torch.no_grad():
        for name, value in task.initial().items():
            own[name].copy_(value.reshape(own[name].shape))
    if ddp:
        model: nn.Module = DistributedDataParallel(module)
    else:
        model = module
        _shard(module, [unit.name for unit in task.units if not unit.root], scenario, ignore_frozen)
    trained = [x for x in model.parameters() if x.requires_grad]
    optimizer = torch.optim.AdamW(trained, rule.lr, rule.betas, rule.eps, rule.weight_decay)
    loss = resolve(workload.loss, "loss")
    steps = []
    with watched or nullcontext():
        for step in range(1, scenario.steps + 1):
            *inputs, target = task.batch(dist.get_rank(), step)
            with Collectives() as noting:
                loss(model(*inputs), target).backward()
                optimizer.step()
                optimizer.zero_grad()
            steps.append(noting.seen)
    params = {}
    for name, value in task.initial().items():
        now = dict(module.named_parameters())[name].detach()
        params[name] = (now.full_tensor() if isinstance(now, DTensor) else now).reshape(value.shape).clone()
    return Trained(steps, params)


def _shard(module: nn.Module, units: Sequence[str], scenario: Scenario, ignore_frozen: bool) -> None:
    mesh, wire = scenario.mesh, scenario.wire
    axes = {"replicate": mesh.replicas, "shard": mesh.shards}
    if mesh.replicas == 1:
        del axes["replicate"]
    settings: dict[str, Any] = {
        "mesh": init_device_mesh("cpu", tuple(axes.values()), mesh_dim_names=tuple(axes)),
        "reshard_after_forward": mesh.reshard_after_forward,
        "mp_policy": MixedPrecisionPolicy(DTYPES[wire.params], DTYPES[wire.grads]),
    }
    if ignore_frozen:
        settings["ignored_params"] = {x for x in module.parameters() if not x.requires_grad}
    # from the inside out: a unit does not take what is a unit's already
    for unit in reversed(units):
        fully_shard(module.get_submodule(unit), **settings)
    fully_shard(module, **settings)


def process(folder: Path, rank: int, world: int) -> None:
    """Train every job of ``jobs.json``, a list of (scenario, ddp), as one gloo process; write ``rankN.pt``."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = dist.FileStore(str(folder / "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=200))
    jobs = json.loads((folder / "jobs.json").read_text("utf-8"))
    done = [train(Scenario.from_dict(scenario), ddp=ddp) for scenario, ddp in jobs]
    plain = [([[tuple(seen) for seen in step] for step in steps], params) for steps, params in done]
    torch.save(plain, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


def main(folder: Path, world: int) -> None:
    """Run all processes; forked, as importing torch takes longer than what they do."""
    torch.set_num_threads(1)
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=process, args=(folder, rank, world), daemon=True) for rank in range(world)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    sys.exit(any(rank.exitcode for rank in ranks))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

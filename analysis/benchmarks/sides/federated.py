"""The federated task in simdist: 10 workers, each of which plays another client in every round; a program of its own.

simdist run analysis/benchmarks/sides/federated.py
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from analysis.benchmarks.sides import federated_data as data
from simdist import Scenario
from simdist.network import Star
from simdist.optimizers import SGD
from simdist.program import Worker
from simdist.program.program import LockstepProgram, Report
from simdist.scenario import MeshSettings
from simdist.schedules import Schedule
from simdist.schedules.job import Job
from simdist.workloads import ParamSpec, Task, Unit, Workload


class Clients(Workload):
    """Logistic regression on 1,000 clients with 60 digits each."""

    name: str = "clients"

    def build(self, seed: int, dtype: torch.dtype, device: torch.device) -> ClientsTask:
        return ClientsTask()


class ClientsTask(Task):
    """A batch is the images of the client that a worker plays in a round, and their labels."""

    def __init__(self) -> None:
        images, labels = data.clients()
        self._images, self._labels = torch.from_numpy(images), torch.from_numpy(labels)
        self.data_hash = "scikit-learn digits"
        self.samples_per_step = data.IMAGES
        forward = 2.0 * data.IMAGES * data.CLASSES * data.PIXELS
        specs = (
            ParamSpec("weight", (data.CLASSES, data.PIXELS), "head"),
            ParamSpec("bias", (data.CLASSES,), "vector"),
        )
        self.units = (Unit("root", specs, forward, forward, root=True),)
        self.validation: Sequence[Any] = [(self._images.flatten(0, 1), self._labels.flatten())]

    def initial(self) -> dict[str, Tensor]:
        return {spec.name: torch.zeros(spec.shape) for spec in self.units[0].params}

    def batch(self, worker: int, step: int) -> tuple[Tensor, ...]:
        client = data.players(step)[worker]
        return self._images[client], self._labels[client]

    def loss(self, params: dict[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        images, labels = batch
        return cross_entropy(images @ params["weight"].mT + params["bias"], labels)


class State(NamedTuple):
    """The parameters that all workers hold after a round."""

    weight: Tensor
    bias: Tensor


class LocalEpoch(Schedule):
    """An epoch of local SGD by every worker, then the mean of their parameters (FedAvg, arXiv 1602.05629)."""

    name: str = "local_epoch"
    lockstep = True

    def program(self, job: Job) -> LocalEpochProgram:
        return LocalEpochProgram(job)


class LocalEpochProgram(LockstepProgram):
    """One round a step."""

    def __init__(self, job: Job) -> None:
        self._job = job

    async def start(self, worker: Worker) -> State:
        first = self._job.task.initial()
        return State(worker.ops.alike(first["weight"]), worker.ops.alike(first["bias"]))

    async def step(self, worker: Worker, state: State, step: int) -> tuple[State, Report]:
        job, local, losses = self._job, state._asdict(), []
        drawn: dict[int, tuple[Tensor, ...]] = {}

        def part(first: int, index: int) -> tuple[Tensor, ...]:
            if index not in drawn:
                drawn[index] = job.task.batch(index, step)
            return tuple(x[first : first + data.BATCH] for x in drawn[index])

        for first in range(0, data.IMAGES, data.BATCH):
            gradients = worker.ops.gradients(job.task.loss, local, partial(part, first))
            deferred = {name: gradients.packed(itemgetter(name)) for name in local}
            losses.append(gradients.loss())
            local = {name: x - data.LR * worker.ops.realize(deferred[name]) for name, x in local.items()}
            losses[-1] = worker.ops.realize(losses[-1])
        await worker.compute(sum(unit.forward_flops + unit.backward_flops for unit in job.task.units), "epoch")
        outer = worker.labelled("outer_sync", "model", "params").mesh.workers
        state = State(*[await outer.mean(local[name]) for name in State._fields])
        loss = await worker.mesh.measuring().workers.mean(torch.stack(losses).mean(0))
        return state, {"train_loss": loss, "val_loss": await self._validate(worker, state, step), "lr": data.LR}

    async def _validate(self, worker: Worker, state: State, step: int) -> Tensor | None:
        if not self._job.evaluates(step):
            return None
        task = self._job.task
        share = worker.ops.evaluate(task.loss, state._asdict(), task.validation)
        total: Tensor = await worker.mesh.measuring().workers.sum(share)
        return total

    async def parameters(self, worker: Worker, state: State) -> dict[str, Tensor]:
        return state._asdict()


def scenario() -> Scenario:
    return Scenario(
        name="federated",
        steps=101,
        workload=Clients(),
        mesh=MeshSettings(replicas=data.PER_ROUND, shards=1),
        optimizer=SGD(lr=data.LR),
        schedule=LocalEpoch(),
        network=Star(bandwidth="10Mbit/s", latency="20ms"),
    )

"""Asynchronous parameter server: workers push gradients when they have them and pull what the server then has."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from simdist.errors import InputError
from simdist.optimizers.rule import MeshShape
from simdist.parallelism import Layout
from simdist.program import Worker
from simdist.program.program import IrregularProgram
from simdist.schedules.job import Job
from simdist.schedules.schedule import Schedule, schedules

SERVER = 0


@schedules.register("async_server")
class AsyncServer(Schedule):
    """Asynchronous: worker 0 serves parameters, the others push stale gradients at their own pace.

    A step is one update on the server. The mesh is R x 1 (no shards): worker 0 and R - 1 workers that train.

    Attributes:
        staleness_weight: ``none``, or ``inverse_sqrt``: the learning rate of a gradient that is s versions old is
            scaled by (1 + s)^(-1/2), a baseline of arXiv 2401.09135.
    """

    name: str = "async_server"
    staleness_weight: Literal["none", "inverse_sqrt"] = "none"
    lockstep: ClassVar[bool] = False

    def program(self, job: Job) -> AsyncServerProgram:
        return AsyncServerProgram(job, self.staleness_weight)


class AsyncServerProgram(IrregularProgram):
    """The server's loop and the workers' loop.

    Raises:
        InputError: for a mesh with shards, or without a worker that trains.
    """

    def __init__(self, job: Job, staleness_weight: str) -> None:
        if job.mesh.shards != 1 or job.mesh.replicas < 2:
            raise InputError(
                f"schedule async_server: got a mesh of {job.mesh.replicas} replicas x {job.mesh.shards} shards; "
                f"expected 2 or more replicas x 1 shard: worker 0 is the server, the others train"
            )
        self.job = job
        self.layout = Layout(job.task.units, job.rule, MeshShape(1, 1))
        self.staleness_weight = staleness_weight
        self.flops = sum(unit.forward_flops + unit.backward_flops for unit in self.layout.units)
        self.pieces = [piece for unit in self.layout.units for piece in unit.pieces]

    async def main(self, worker: Worker) -> dict[str, Tensor] | None:
        if worker.index == SERVER:
            return await self.serve(worker)
        await self.train(worker)
        return None

    def flat(self, values: dict[str, Tensor]) -> Tensor:
        return torch.cat([values[piece.name].flatten() for piece in self.pieces])

    def unflat(self, x: Tensor) -> dict[str, Tensor]:
        parts = x.split([piece.size for piece in self.pieces])
        return {piece.name: part.view(piece.shape) for piece, part in zip(self.pieces, parts, strict=True)}

    async def serve(self, worker: Worker) -> dict[str, Tensor]:
        """Apply gradients in the order of their arrival until ``steps`` updates are made, then dismiss everybody."""
        job, layout, alone = self.job, self.layout, worker.alone()
        down = worker.labelled("param_pull", "params", "params")
        params = layout.shard(job.task.initial(), alone)
        states = [a.rule.init(a.stack, x, alone) for a, x in zip(layout.assignments, params, strict=True)]
        for version in range(1, job.steps + worker.count - 1):
            message = await worker.receive(tag="grads")
            read, loss = message.note
            if version <= job.steps:
                staleness = version - 1 - read
                grads = layout.stack(self.unflat(message.tensor))
                params, states = await self.update(params, states, grads, version, staleness, alone)
                measured = job.evaluates(version)
                worker.observe(
                    step=version,
                    train_loss=loss,
                    val_loss=self.validate(params, states, alone) if measured else None,
                    lr=job.lr(job.rule, version) * self.weight(staleness),
                )
                worker.observe(step=version, matrix="all", worker=message.source, staleness=staleness)
            # the last push of every worker comes after the last update: it is answered by a dismissal
            note = version if version < job.steps else None
            await down.send(message.source, self.flat(layout.unstack(params)), tag="params", wait=False, note=note)
        return self.judged(params, states, alone)

    async def update(
        self, params: list[Tensor], states: list[Any], grads: list[Tensor], version: int, staleness: int, alone: Worker
    ) -> tuple[list[Tensor], list[Any]]:
        results = [
            await a.rule.update(a.stack, x, g, s, self.job.lr(a.rule, version) * self.weight(staleness), alone)
            for a, x, g, s in zip(self.layout.assignments, params, grads, states, strict=True)
        ]
        return [x for x, _ in results], [state for _, state in results]

    def weight(self, staleness: int) -> float:
        return 1.0 if self.staleness_weight == "none" else float((1 + staleness) ** -0.5)

    def judged(self, params: list[Tensor], states: list[Any], alone: Worker) -> dict[str, Tensor]:
        """Return the parameters that the rules hand out for evaluation; workers get those that are trained."""
        return self.layout.unstack(
            a.rule.evaluated(a.stack, x, state, alone)
            for a, x, state in zip(self.layout.assignments, params, states, strict=True)
        )

    def validate(self, params: list[Tensor], states: list[Any], alone: Worker) -> Tensor:
        task = self.job.task
        return alone.ops.evaluate(task.loss, self.judged(params, states, alone), task.validation)

    async def train(self, worker: Worker) -> None:
        """Compute a gradient on whatever parameters came last, push it, pull, and so on until dismissed."""
        job = self.job
        up = worker.labelled("grad_push", "gradients", "grads")
        params = job.task.initial()
        version: int | None = 0
        for step in itertools.count(1):
            if version is None:
                break
            await worker.compute(self.flops, "forward and backward")
            gradients = worker.ops.gradients(job.task.loss, params, partial(job.task.batch, step=step))
            note = (version, float(gradients.loss()))
            await up.send(SERVER, gradients.packed(self.flat), tag="grads", note=note)
            message = await worker.receive(SERVER, tag="params")
            params, version = self.unflat(message.tensor), message.note

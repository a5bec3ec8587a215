"""Synchronous training: workers reduce their gradients in every step (DDP, FSDP and HSDP by the shape of the mesh)."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from simdist.parallelism.reducing import Memories
from simdist.program import Worker, together
from simdist.program.program import LockstepProgram, Report
from simdist.schedules.job import Job
from simdist.schedules.schedule import Schedule, schedules


class WorkerState(NamedTuple):
    """This worker's rows of every stack of parameters, its rules' states, and its compressions' memories."""

    params: list[Tensor]
    rules: list[Any]
    memories: Memories


@schedules.register("every_step")
class EveryStep(Schedule):
    """Synchronous: gradients are averaged over all workers in every step."""

    name: str = "every_step"
    lockstep: ClassVar[bool] = True
    compresses: ClassVar[bool] = True

    def program(self, job: Job) -> EveryStepProgram:
        return EveryStepProgram(job)


class EveryStepProgram(LockstepProgram):
    """The FSDP step: gather unit by unit, forward, backward with re-gather and reduce, then the rules together."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.layout = job.layout()
        self.reduction = job.reduction(self.layout)

    async def start(self, worker: Worker) -> WorkerState:
        params = self.layout.shard(self.job.task.initial(), worker)
        rules = [a.rule.init(a.stack, x, worker) for a, x in zip(self.layout.assignments, params, strict=True)]
        return WorkerState(params, rules, self.reduction.init(worker, self.layout.unstack(params)))

    async def step(self, worker: Worker, state: WorkerState, step: int) -> tuple[WorkerState, Report]:
        job, layout = self.job, self.layout
        local = layout.unstack(state.params)

        full: dict[str, Tensor] = {}
        for unit in layout.units:
            full |= await layout.gather(unit, local, worker.labelled("param_gather", unit.name, "params"))
            await worker.compute(unit.forward_flops, "forward")

        gradients = worker.ops.gradients(job.task.loss, full, lambda w: job.task.batch(w, step))
        del full
        packed = {
            buffer: gradients.packed(partial(layout.pack, buffer)) for unit in layout.units for buffer in unit.buffers
        }
        loss = gradients.loss()

        reduced: dict[str, Tensor] = {}
        memories: Memories = {}
        for unit in reversed(layout.units):
            if unit.regather:
                # the same bits as in forward, which the gradients above already used; here it costs its bytes
                await layout.gather(unit, local, worker.labelled("param_gather", unit.name, "params"))
            await worker.compute(unit.backward_flops, "backward")
            for buffer in unit.buffers:
                on_wire = worker.labelled("grad_reduce", unit.name, "grads")
                values, kept = await self.reduction.reduce(buffer, packed.pop(buffer), state.memories, on_wire, step)
                reduced |= values
                memories |= kept

        measuring = worker.measuring(job.measures(step))
        updates = [
            a.rule.update(a.stack, x, grad, rule, job.lr(a.rule, step), measuring.labelled("optimizer", a.stack.title))
            for a, x, grad, rule in zip(
                layout.assignments, state.params, layout.stack(reduced), state.rules, strict=True
            )
        ]
        results = await together(*updates)
        state = WorkerState([x for x, _ in results], [rule for _, rule in results], memories)
        if measuring.measures:
            await self.reduction.audit(memories, measuring)
        report: Report = {
            "train_loss": worker.ops.realize(await worker.mesh.measuring().workers.mean(loss)),
            "val_loss": await self.validate(worker, state) if job.evaluates(step) else None,
            "lr": job.lr(job.rule, step),
        }
        return state, report

    async def validate(self, worker: Worker, state: WorkerState) -> Tensor:
        """Return the validation loss; what travels for it is a measurement and costs nothing."""
        task = self.job.task
        share = worker.ops.evaluate(task.loss, await self.parameters(worker, state), task.validation)
        total: Tensor = await worker.mesh.measuring().workers.sum(share)
        return total

    async def parameters(self, worker: Worker, state: WorkerState) -> dict[str, Tensor]:
        """Return the full parameters, as the rules hand them out for evaluation."""
        judged = [
            a.rule.evaluated(a.stack, x, rule, worker)
            for a, x, rule in zip(self.layout.assignments, state.params, state.rules, strict=True)
        ]
        local = self.layout.unstack(judged)
        measuring = worker.labelled("diagnostic", "params", "params")
        full: dict[str, Tensor] = {}
        for unit in self.layout.units:
            full |= await self.layout.gather(unit, local, measuring)
        return full

"""Synchronous training: workers reduce their gradients in every step (DDP, FSDP and HSDP by the shape of the mesh)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from simdist.parallelism.reducing import Memories
from simdist.program import Worker, together
from simdist.program.program import LockstepProgram, Report
from simdist.program.state import tensors_of
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
        # what a pass over a unit moves at least: forward reads its weights, backward reads them and writes gradients
        width = state.params[0].element_size()

        full: dict[str, Tensor] = {}
        for unit in layout.units:
            full |= await layout.gather(unit, local, worker.labelled("param_gather", unit.name, "params"))
            forward = worker.labelled("forward", unit.name)
            await forward.compute(unit.forward_flops, "forward", memory_bytes=unit.numel * width)

        gradients = worker.ops.gradients(job.task.loss, full, lambda w: job.task.batch(w, step))
        del full
        packed = {}
        for unit in layout.units:
            on_wire = worker.labelled("grad_reduce", unit.name, "grads")
            for buffer in unit.buffers:
                use = self.reduction.use_of(buffer, on_wire)
                packed[buffer] = gradients.packed(partial(layout.pack, buffer), use)
        loss = gradients.loss()

        reduced: dict[str, Tensor] = {}
        memories: Memories = {}
        for unit in reversed(layout.units):
            for again in layout.before_backward(unit):
                # the same bits as in forward, which the gradients above already used; here it costs its bytes
                await layout.gather(again, local, worker.labelled("param_gather", again.name, "params"))
            backward = worker.labelled("backward", unit.name)
            await backward.compute(unit.backward_flops, "backward", memory_bytes=2 * unit.numel * width)
            for buffer in unit.buffers:
                on_wire = worker.labelled("grad_reduce", unit.name, "grads")
                values, kept = await self.reduction.reduce(buffer, packed.pop(buffer), state.memories, on_wire, step)
                reduced |= values
                memories |= kept

        stacked = layout.stack(reduced)
        # with replicas that differ, a cohort holds one of these for each of them
        del reduced, values
        measuring = worker.measuring(job.measures(step))
        updates = [
            a.rule.update(a.stack, x, grad, rule, job.lr(a.rule, step), measuring.labelled("optimizer", a.stack.title))
            for a, x, grad, rule in zip(layout.assignments, state.params, stacked, state.rules, strict=True)
        ]
        del stacked
        results = await together(*updates)
        await self.touch(worker, results)
        state = WorkerState([x for x, _ in results], [rule for _, rule in results], memories)
        if measuring.measures:
            await self.reduction.audit(memories, measuring)
        report: Report = {
            "train_loss": worker.ops.realize(await worker.mesh.measuring().workers.mean(loss)),
            "val_loss": await self.validate(worker, state) if job.evaluates(step) else None,
            "lr": job.lr(job.rule, step),
        }
        return state, report

    async def touch(self, worker: Worker, results: Sequence[tuple[Tensor, Any]]) -> None:
        """Book the memory that an update moves at least: gradients read; parameters and states read and written."""
        params = sum(worker.ops.own_bytes(x) for x, _ in results)
        states = sum(
            a.rule.state_bytes(state, worker) for a, (_, state) in zip(self.layout.assignments, results, strict=True)
        )
        updating = worker.labelled("optimizer", "states")
        await updating.compute(0.0, "memory", memory_bytes=3 * params + 2 * states)

    async def validate(self, worker: Worker, state: WorkerState) -> Tensor:
        """Return the validation loss; what travels for it is a measurement and costs nothing."""
        task = self.job.task
        share = worker.ops.evaluate(task.loss, await self.parameters(worker, state), task.validation)
        total: Tensor = await worker.mesh.measuring().workers.sum(share)
        return total

    def held(self, worker: Worker, state: WorkerState) -> dict[str, float]:
        """See :meth:`LockstepProgram.held`; what stacks hold for their dummies is apart, as they are our choice."""
        found = dict.fromkeys(("parameters", "optimizer_state", "stack_padding", "compression_memory"), 0.0)
        for a, x, rule in zip(self.layout.assignments, state.params, state.rules, strict=True):
            dummies = 1 - len(a.stack.names) / a.stack.count
            for kind, tensors in (("parameters", [x]), ("optimizer_state", tensors_of(rule))):
                for tensor in tensors:
                    size = worker.ops.own_bytes(tensor)
                    # what has an entry for each matrix of the stack
                    padding = dummies * size if tensor.ndim and tensor.shape[0] == a.stack.count else 0.0
                    found[kind] += size - padding
                    found["stack_padding"] += padding
        found["compression_memory"] = float(sum(worker.ops.own_bytes(x) for x in tensors_of(state.memories)))
        return found

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

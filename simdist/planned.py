"""A plan: bytes, seconds and memory of a run whose model may fit no machine, from shapes alone.

The scenario's own worker programs, codecs, plans, network and clock are used; only tensors are replaced by meta tensors
(:mod:`simdist.execution.shapes`). So a plan's ledger and times are those of the run, as far as nothing in it steers by
values; what a plan assumes there is said by :func:`simdist.linalg.deciding.decide`.
"""

from __future__ import annotations

import math
import traceback
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simdist.assembly import build_compute, build_job, build_pricer, build_wiring
from simdist.communication.ledger import Ledger
from simdist.communication.trace import ComputeOp, StepOps
from simdist.errors import InputError, SimdistError
from simdist.execution.clock import LockstepClock, StepTimes, collective_times
from simdist.execution.compute_model import OPTIMIZER, PASSES
from simdist.execution.shapes import META, nothing_drawn, shape_engine, shape_worker
from simdist.planned_memory import Memory, memory_of
from simdist.scenario import Scenario, check_fits

if TYPE_CHECKING:
    from simdist.schedules import Job
    from simdist.workloads.workload import Task


@dataclass(frozen=True)
class StepSeconds:
    """The times of one step, as ``steps.parquet`` has them, and those of its phases (:attr:`Planned.phases`)."""

    simulated_seconds: float
    compute_seconds: float
    exposed_comm_seconds: float
    hidden_comm_seconds: float
    phases: Mapping[str, float]

    @classmethod
    def of(cls, ops: StepOps, times: StepTimes) -> StepSeconds:
        """Take from the clock what a plan keeps: not every worker's own times."""
        return cls(
            times.simulated_seconds,
            times.compute_seconds,
            times.exposed_comm_seconds,
            times.hidden_comm_seconds,
            _phases(ops, times),
        )


@dataclass(frozen=True, eq=False)
class Planned:
    """What a scenario's first steps send and take.

    Attributes:
        parameters: numbers in the model.
        samples: examples in one worker's batch (for text: tokens).
        ops: descriptors of every step.
        times: of every step.
        ledger: all rows, with times.
        memory: of one worker.
    """

    scenario: Scenario
    parameters: int
    samples: int
    ops: Sequence[StepOps]
    times: Sequence[StepSeconds]
    ledger: Ledger
    memory: Memory

    @property
    def steps(self) -> int:
        """How many were planned."""
        return len(self.ops)

    @cached_property
    def step_seconds(self) -> float:
        """Simulated seconds of a step, on average over the steps."""
        return self.times[-1].simulated_seconds / self.steps

    @cached_property
    def split(self) -> dict[str, float]:
        """Seconds of an average step: computing, exposed and hidden communication (as ``steps.parquet`` has them)."""
        names = ("compute_seconds", "exposed_comm_seconds", "hidden_comm_seconds")
        return {name: math.fsum(getattr(one, name) for one in self.times) / self.steps for name in names}

    @cached_property
    def phases(self) -> dict[str, float]:
        """Seconds of an average step from its start to the end of forward, on to that of backward, and the rest.

        Forward ends with its last computing, backward with its last computing or gradient reduction. They add up to the
        step where all workers begin it together.
        """
        names = (*PASSES, OPTIMIZER)
        return {name: math.fsum(one.phases[name] for one in self.times) / self.steps for name in names}

    @cached_property
    def flops(self) -> dict[str, float]:
        """Operations of one worker in an average step, by purpose (``grad_reduce``: gradient compression)."""
        found: dict[str, float] = defaultdict(float)
        for op in self._computing:
            found[op.purpose] += op.flops / self.steps
        return dict(found)

    @cached_property
    def busy(self) -> dict[str, float]:
        """Seconds that a worker of speed one computes in an average step, by purpose."""
        model = build_compute(self.scenario)
        found: dict[str, float] = defaultdict(float)
        for ops in self.ops:
            for (wave, item), seconds in model.step_seconds(ops).items():
                found[getattr(ops[wave][item], "purpose", "")] += seconds / self.steps
        return dict(found)

    @cached_property
    def sent(self) -> dict[tuple[str, str], float]:
        """Bytes that one worker sends in an average step, on average over the workers, by (purpose, axis)."""
        found: dict[tuple[str, str], float] = defaultdict(float)
        columns = self.ledger.columns()
        for purpose, axis, size in zip(columns["purpose"], columns["axis"], columns["sent_bytes_total"], strict=True):
            assert isinstance(size, int)
            found[str(purpose), str(axis)] += size / self.steps / self.scenario.workers
        return dict(found)

    @property
    def _computing(self) -> Iterator[ComputeOp]:
        return (op for ops in self.ops for wave in ops for op in wave if isinstance(op, ComputeOp))

    def to_dict(self) -> dict[str, Any]:
        """Return everything for ``plan.json``."""
        return {
            "name": self.scenario.name,
            "workers": self.scenario.workers,
            "steps": self.steps,
            "parameters": self.parameters,
            "samples_per_worker": self.samples,
            "step_seconds": self.step_seconds,
            **self.split,
            "phase_seconds": self.phases,
            "busy_seconds": self.busy,
            "flops": self.flops,
            "sent_bytes_per_worker": math.fsum(self.sent.values()),
            "sent_bytes_total": math.fsum(self.sent.values()) * self.scenario.workers,
            "sent": [
                {
                    "purpose": purpose,
                    "axis": axis,
                    "bytes_per_worker": size,
                    "bytes_total": size * self.scenario.workers,
                }
                for (purpose, axis), size in self.sent.items()
            ],
            "memory": self.memory.to_dict(),
            "ledger_sha256": self.ledger.sha256(),
        }


def plan(scenario: Scenario) -> Planned:
    """Plan a scenario's ``steps`` first steps: nothing is trained, allocated or drawn.

    Raises:
        InputError: for a scenario that cannot be run, or not from shapes alone, with the reason.
    """
    if not scenario.schedule.lockstep:
        raise InputError(
            f"schedule.name: got {scenario.schedule.name!r}, whose workers decide by what arrives when; a plan knows "
            "lock-step schedules only: expected one such as 'every_step'"
        )
    with _shapes_suffice(scenario):
        task = scenario.workload.build(scenario.seed, scenario.torch_dtype, META)
    check_fits(scenario, task.units)
    pricer = build_pricer(scenario)
    job = build_job(scenario, task)
    ops, held = _recorded(scenario, job)
    # the ledger asks for plans by the step alone: what the pricer knows of thousands of workers can go
    chosen = {one: pricer.plans(one) for one in set(ops)}
    ledger, clock, times = Ledger(scenario.mesh.shape, chosen.__getitem__), LockstepClock(pricer), []
    for step, one in enumerate(ops, 1):
        found = clock.advance(one)
        times.append(StepSeconds.of(one, found))
        ledger.add_step(step, one, collective_times(one, found))
    memory = memory_of(scenario, task.units, job.layout(), held)
    return Planned(scenario, _parameters(task), task.samples_per_step, ops, times, ledger, memory)


def _recorded(scenario: Scenario, job: Job) -> tuple[list[StepOps], dict[str, float]]:
    """Return the descriptors of every step, and what a worker holds after the last one."""
    program: Any = scenario.schedule.program(job)
    wiring = build_wiring(scenario)
    mesh, seed = scenario.mesh.shape, scenario.seed
    ops: list[StepOps] = []
    with _shapes_suffice(scenario), nothing_drawn(), shape_engine(program, mesh, wiring, seed) as engine:
        for outcome in engine.steps(1, scenario.steps):
            # equal steps share their descriptors, so that they are looked at once
            ops.append(next((known for known in ops[-1:] if known == outcome.ops), outcome.ops))
        (state,) = engine.states
        return ops, program.held(shape_worker(mesh, seed), state)


def _phases(ops: StepOps, times: StepTimes) -> dict[str, float]:
    ends = dict.fromkeys(PASSES, 0.0)
    for wave, items in zip(ops, times.timing.waves, strict=True):
        for op, (_, end) in zip(wave, items, strict=True):
            purpose = getattr(op, "purpose", "")
            phase = "backward" if purpose == "grad_reduce" else purpose
            if phase in ends:
                ends[phase] = max(ends[phase], end)
    forward, backward = ends["forward"], max(ends.values())
    return {"forward": forward, "backward": backward - forward, OPTIMIZER: times.timing.duration - backward}


def _parameters(task: Task) -> int:
    return sum(math.prod(param.shape) for unit in task.units for param in unit.params)


@contextmanager
def _shapes_suffice(scenario: Scenario) -> Iterator[None]:
    """Turn what meta tensors raise when somebody asks for their values into a message."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # torch raises several kinds, and a user's class whatever it makes of them
        cause = error.__cause__ if isinstance(error, SimdistError) and error.__cause__ is not None else error
        if "meta" not in str(cause):
            raise
        frames = traceback.extract_tb(cause.__traceback__)
        ours = [frame for frame in frames if "site-packages" not in frame.filename] or frames
        where = f"{Path(ours[-1].filename).name}, line {ours[-1].lineno}"
        methods = [scenario.optimizer.name, *(x.name for x in _compressions(scenario)), scenario.workload.name]
        reason = str(cause).strip().partition("\n")[0]
        raise InputError(
            f"got {', '.join(map(repr, methods))}, of which one reads values of tensors ({where}: {reason}); a plan "
            "has shapes only: expected methods whose messages and steps do not depend on values, or a small model's run"
        ) from error


def _compressions(scenario: Scenario) -> list[Any]:
    both = (scenario.compression.replicas, scenario.compression.shards)
    return [method for method in both if method is not None]

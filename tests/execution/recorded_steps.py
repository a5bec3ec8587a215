"""Steps as real scenarios record them, random ones of the same form, and the policies that they run under."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from simdist.assembly import build_engine, build_job, build_task
from simdist.communication.plans.plan import OPS
from simdist.communication.trace import CollectiveOp, ComputeOp, StepOps, WaveOps
from simdist.execution.events import DIAGNOSTIC
from simdist.execution.overlap import DDP, FSDP, NoOverlap, Overlap
from simdist.scenario import Scenario

#: every policy, some of them with more than one setting; a new one joins by one line
POLICIES: dict[str, Overlap] = {
    "none": NoOverlap(),
    "fsdp": FSDP(),
    "fsdp, no prefetch": FSDP(prefetch=0),
    "fsdp, three ahead": FSDP(prefetch=3),
    "ddp": DDP(),
    "ddp, small buckets": DDP(bucket=30_000, first_bucket=1),
}


@dataclass(frozen=True)
class Setup:
    """What a recorded step comes from: (replicas, shards), and the sections of the scenario that matter."""

    mesh: tuple[int, int]
    optimizer: str = "adamw"
    compression: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)


POWERSGD = {"replicas": {"name": "powersgd", "rank": 2}}
SETUPS: dict[str, Setup] = {
    "ddp 4x1 adamw": Setup((4, 1)),
    "ddp 4x1 orth_dion": Setup((4, 1), "orth_dion"),
    "ddp 4x1 powersgd": Setup((4, 1), compression=POWERSGD),
    "fsdp 1x4 adamw": Setup((1, 4)),
    "fsdp 1x4 orth_dion": Setup((1, 4), "orth_dion"),
    "fsdp 1x4 error_feedback": Setup(
        (1, 4), compression={"shards": {"name": "error_feedback", "codec": "topk(fraction=0.1)"}}
    ),
    "fsdp 1x4 no re-gather": Setup((1, 4), more={"mesh": {"shards": 4, "reshard_after_forward": False}}),
    "hsdp 2x2 adamw, vectors apart, measured": Setup(
        (2, 2), more={"wire": {"vectors": "bf16"}, "evaluation": {"every": 1}, "diagnostics": {"every": 1}}
    ),
    "hsdp 2x2 powersgd": Setup((2, 2), compression=POWERSGD),
    "hsdp 2x4 orth_dion": Setup((2, 4), "orth_dion"),
}


@functools.cache
def recorded(name: str) -> StepOps:
    """Train one step of a tiny byte-level GPT and return what it recorded: three units, the root and two blocks."""
    setup = SETUPS[name]
    optimizer: dict[str, Any] = {"name": setup.optimizer, "lr": 0.01}
    if setup.optimizer == "orth_dion":
        optimizer["rank"] = 2
    workload = {"name": "byte_gpt", "width": 16, "depth": 2, "heads": 2, "context": 16, "batch": 1}
    scenario = Scenario.from_dict(
        {
            "steps": 1,
            "workload": {**workload, "corpus": f"file:{Path(__file__).with_name('test_overlap.py')}"},
            "optimizer": optimizer,
            "mesh": {"replicas": setup.mesh[0], "shards": setup.mesh[1]},
            "compression": setup.compression,
            **setup.more,
        }
    )
    with build_engine(scenario, build_job(scenario, build_task(scenario))) as engine:
        (outcome,) = engine.steps(1, 1)
    return outcome.ops


def suits(policy: Overlap, mesh: tuple[int, int]) -> bool:
    """Whether a scenario may name a policy for so many shards."""
    return policy.problem(mesh[1], lockstep=True) is None


#: (recorded step, policy), where they go together
CASES = [(setup, policy) for setup in SETUPS for policy in POLICIES if suits(POLICIES[policy], SETUPS[setup].mesh)]


def backward_only(sizes: list[int], flops: float = 1.0) -> StepOps:
    """Backward passes, each with an all-reduce over replicas of so many bytes."""
    step: list[WaveOps] = []
    for number, size in enumerate(sizes):
        step.append((ComputeOp(flops, 0, "backward", str(number)),))
        step.append((CollectiveOp("all_reduce", "replicas", "grad_reduce", str(number), "fp32", size),))
    return tuple(step)


# -- random steps -----------------------------------------------------------------------------------------------------

SIZES = st.sampled_from([0, 7, 1000, 1001, 40_000])
FLOPS = st.sampled_from([0.0, 1e5, 3e5, 1e6])


def collective(op: str, axis: str, purpose: str, tensor: str, size: int) -> CollectiveOp:
    return CollectiveOp(op, axis, purpose, tensor, "fp32", size)


@st.composite
def reductions(draw: st.DrawFn, unit: str) -> list[WaveOps]:
    """What may follow a backward pass: nothing, a reduce-scatter, HSDP's two reductions, or a compression's rounds."""
    size = draw(SIZES)
    compress: WaveOps = (ComputeOp(draw(FLOPS), purpose="grad_reduce", tensor=unit),)
    scatter: WaveOps = (collective("reduce_scatter", "shards", "grad_reduce", unit, size),)
    reduce: WaveOps = (collective("all_reduce", "replicas", "grad_reduce", unit, size // 2),)
    factors: WaveOps = tuple(collective("all_reduce", "replicas", "grad_reduce", f"{unit}:{n}", size) for n in "PQ")
    both: WaveOps = (*scatter, *factors)
    kinds = [[], [scatter], [scatter, reduce], [reduce], [compress, factors, reduce], [scatter, compress, both]]
    return draw(st.sampled_from(kinds))


@st.composite
def training_steps(draw: st.DrawFn) -> StepOps:
    """Forward and backward over a few units with gathers and reductions, then an optimizer and measurements."""
    units = [f"unit{number}" for number in range(draw(st.integers(1, 4)))]
    sizes = {unit: draw(SIZES) for unit in units}
    step: list[WaveOps] = []

    def gather(unit: str) -> None:
        if draw(st.integers(0, 3)):  # mostly
            step.append((collective("all_gather", "shards", "param_gather", unit, sizes[unit]),))

    for unit in units:
        gather(unit)
        step.append((ComputeOp(draw(FLOPS), purpose="forward", tensor=unit),))
    for unit in reversed(units):
        gather(unit)
        step.append((ComputeOp(draw(FLOPS), purpose="backward", tensor=unit),))
        step += draw(reductions(unit))
    for number in range(draw(st.integers(0, 3))):
        op = collective(draw(st.sampled_from(OPS)), draw(st.sampled_from(AXES)), "optimizer", f"m{number}", draw(SIZES))
        step.append((op, ComputeOp(draw(FLOPS), purpose="optimizer")))
    if draw(st.booleans()):
        step.append((collective("all_reduce", "workers", DIAGNOSTIC, "loss", 0),))
    return tuple(step)


AXES = ("replicas", "shards", "workers")

"""From a scenario to the things that run it: task, job, engine, network, plan, pricer."""

from __future__ import annotations

import functools
import os
import time
from typing import TYPE_CHECKING, Any

import torch

from simdist.communication.plans import Collectives, collectives_named
from simdist.execution.blocks import split_into_blocks
from simdist.execution.compute_model import ComputeModel
from simdist.execution.engine import Engine, LocalEngine, set_threads
from simdist.execution.live_block import LiveHosts, LocalHosts
from simdist.execution.lockstep import Hold
from simdist.execution.pacing import Pacer
from simdist.execution.pricing import StepPricer
from simdist.execution.timeline import Timeline
from simdist.execution.wiring import Wiring
from simdist.parallelism import Compressions
from simdist.profiles import read_profile
from simdist.scenario import Scenario, check_fits, check_machine
from simdist.schedules import Job

if TYPE_CHECKING:
    from simdist.execution.ray_shipping import Luggage
    from simdist.workloads.workload import Task


def build_task(scenario: Scenario) -> Task:
    """Load the data and model.

    Raises:
        InputError: when the machine, the data, the mesh or the optimizer does not fit the scenario.
    """
    check_machine(scenario)
    set_threads(threads_of(scenario))
    task = scenario.workload.build(scenario.seed, scenario.torch_dtype, torch.device(scenario.engine.device))
    check_fits(scenario, task.units)
    return task


def build_job(scenario: Scenario, task: Task) -> Job:
    """Return what the schedule needs to make its program."""
    return Job(
        task=task,
        rule=scenario.optimizer,
        mesh=scenario.mesh.shape,
        steps=scenario.steps,
        seed=scenario.seed,
        lr_schedule=scenario.lr_schedule,
        reshard_after_forward=scenario.mesh.reshard_after_forward,
        vectors_apart=scenario.wire.vectors is not None,
        evaluate_every=scenario.evaluation.every,
        measure_every=scenario.diagnostics.every,
        compressions=Compressions(scenario.compression.replicas, scenario.compression.shards),
    )


def build_collectives(scenario: Scenario) -> Collectives:
    """Return the plan or profile that ``network.collectives`` names."""
    return collectives_named(scenario.network.collectives)


def build_wiring(scenario: Scenario) -> Wiring:
    """Return the codecs that ``wire`` names."""
    return Wiring.from_names(scenario.wire.model_dump(exclude_none=True), scenario.seed)


def build_pricer(scenario: Scenario) -> StepPricer:
    """Return what prices lock-step steps under the scenario's network and compute settings.

    Raises:
        InputError: when the network lacks a worker's host or is disconnected.
    """
    mesh = scenario.mesh.shape
    return StepPricer(
        scenario.network.network(mesh.workers),
        (mesh.replicas, mesh.shards),
        build_collectives(scenario),
        build_compute(scenario),
        scenario.overlap,
    )


def build_compute(scenario: Scenario) -> ComputeModel:
    """Return how long the workers compute.

    Raises:
        InputError: for a profile or trace of stragglers that cannot be read or does not fit.
    """
    compute, workers = scenario.compute, scenario.workers
    profile = None if compute.profile is None else read_profile(compute.profile)
    return ComputeModel(
        flops_per_second=compute.flops_per_second,
        slowness=tuple(1.0 / compute.speeds.get(worker, 1.0) for worker in range(workers)),
        memory_bytes_per_second=compute.memory_bytes_per_second,
        profile=None if profile is None else profile.seconds,
        stragglers=None if compute.stragglers is None else compute.stragglers.slowness(workers),
        source="compute.profile" if profile is None else profile.path,
    )


def threads_of(scenario: Scenario) -> int:
    """Return torch's threads per process: one where bits must not depend on the machine, all cores if stacked."""
    if scenario.engine.threads is not None:
        return scenario.engine.threads
    return (os.cpu_count() or 1) if scenario.engine.name == "stacked" else 1


def build_engine(scenario: Scenario, job: Job, ray_address: str | None = None, squeeze: bool = False) -> Engine:
    """Return the engine that a lock-step scenario names, not started yet.

    Args:
        ray_address: of a running Ray cluster, for engine ``ray``.
        squeeze: let Ray actors share CPUs where the cluster has become too small for them.
    """
    engine, mesh, wiring = scenario.engine, scenario.mesh.shape, build_wiring(scenario)
    if engine.name == "ray":
        from simdist.execution.ray_engine import RayEngine, Stacking
        from simdist.execution.ray_shipping import Luggage

        luggage = Luggage.packed(scenario.to_dict())
        return RayEngine(
            functools.partial(_program_in_actor, luggage),
            mesh,
            wiring,
            scenario.seed,
            blocks_of(scenario),
            make_hold=functools.partial(_hold_in_actor, luggage) if paced(scenario) else None,
            device=engine.device,
            threads=threads_of(scenario),
            stacking=Stacking(engine.block == "stacked", engine.chunk),
            address=ray_address,
            squeeze=squeeze,
        )
    hold = _hold(scenario) if paced(scenario) else None
    program = build_program(scenario, job)
    if engine.name == "stacked":
        return LocalEngine.stacked(program, mesh, wiring, scenario.seed, hold, engine.chunk)
    return LocalEngine.inline(program, mesh, wiring, scenario.seed, hold)


def build_timeline(scenario: Scenario) -> Timeline:
    """Return the virtual clock of an irregular scenario."""
    mesh = scenario.mesh.shape
    return Timeline(
        scenario.network.network(mesh.workers),
        (mesh.replicas, mesh.shards),
        build_collectives(scenario),
        build_compute(scenario),
    )


def build_hosts(scenario: Scenario, job: Job, ray_address: str | None = None) -> LiveHosts:
    """Return whoever holds the coroutines of an irregular scenario, not started yet."""
    mesh, wiring, engine = scenario.mesh.shape, build_wiring(scenario), scenario.engine
    if engine.name == "ray":
        from simdist.execution.ray_hosts import RayHosts
        from simdist.execution.ray_shipping import Luggage

        return RayHosts(
            functools.partial(_program_in_actor, Luggage.packed(scenario.to_dict())),
            mesh,
            wiring,
            scenario.seed,
            blocks_of(scenario),
            device=engine.device,
            threads=threads_of(scenario),
            address=ray_address,
        )
    return LocalHosts(build_program(scenario, job), mesh, wiring, scenario.seed)


def blocks_of(scenario: Scenario) -> list[range]:
    """Return the workers of every Ray actor."""
    from simdist.execution.ray_cluster import default_actors

    engine = scenario.engine
    return split_into_blocks(scenario.workers, engine.actors, engine.workers_per_actor, default_actors(engine.device))


def build_program(scenario: Scenario, job: Job) -> Any:
    """Return the worker program: lock-step or irregular, as the schedule says."""
    return scenario.schedule.program(job)


def paced(scenario: Scenario) -> bool:
    """Whether wall time is to follow simulated time."""
    return scenario.network.mode == "paced"


def _hold(scenario: Scenario) -> Hold:
    return Pacer(build_pricer(scenario), time.monotonic, time.sleep)


def _program_in_actor(luggage: Luggage) -> Any:
    scenario = Scenario.from_dict(luggage.unpacked())
    return build_program(scenario, build_job(scenario, build_task(scenario)))


def _hold_in_actor(luggage: Luggage) -> Hold:
    return _hold(Scenario.from_dict(luggage.unpacked()))

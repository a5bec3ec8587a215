"""A plan's descriptors are those of real runs, for every rule, compression and codec there is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from simdist.assembly import build_job, build_wiring
from simdist.communication.trace import StepOps
from simdist.execution.engine import LocalEngine
from simdist.execution.shapes import META, nothing_drawn, shape_engine, shape_worker
from simdist.optimizers import SGD, AdaDionV2, AdaOrthDion, MuonBP, OrthDion, Rule
from simdist.program.random import normal, stream
from simdist.program.state import tensors_of
from simdist.scenario import CompressionSettings, MeshSettings, Scenario, WireSettings
from simdist.workloads import Teacher
from tests.codecs.catalogue import CATALOGUE as CODECS
from tests.compression.catalogue import CATALOGUE as COMPRESSIONS
from tests.optimizers.catalogue import CASES

MESHES = [(1, 4), (4, 1), (2, 2)]
CPU = torch.device("cpu")
#: all but the rule whose rank follows values in a few steps: see test_an_adaptive_rank_is_planned_as_it_starts
RULES = [case for case in CASES if case.id != "ada_orth_dion"]


def scenario(mesh: tuple[int, int], **changes: Any) -> Scenario:
    replicas, shards = mesh
    return Scenario(
        **{
            "workload": Teacher(rows=10, columns=7, matrices=3),
            "mesh": MeshSettings(replicas=replicas, shards=shards),
            "optimizer": SGD(lr=0.1),
            **changes,
        }
    )


def steps_of(found: Scenario, device: torch.device, steps: int) -> tuple[list[StepOps], Any]:
    """Return the descriptors of some steps, and the first worker's state after them."""
    job = build_job(found, found.workload.build(found.seed, found.torch_dtype, device))
    program: Any = found.schedule.program(job)
    wiring, mesh = build_wiring(found), found.mesh.shape
    if device == CPU:
        with LocalEngine.inline(program, mesh, wiring, found.seed) as engine:
            return [one.ops for one in engine.steps(1, steps)], engine.states[0]
    with nothing_drawn(), shape_engine(program, mesh, wiring, found.seed) as engine:
        return [one.ops for one in engine.steps(1, steps)], engine.states[0]


def check(found: Scenario, steps: int = 2) -> None:
    planned, state = steps_of(found, META, steps)
    run, real = steps_of(found, CPU, steps)
    assert planned == run
    # what a worker holds has the shapes and number formats of the real thing
    shapes = [[(tuple(x.shape), x.dtype) for x in tensors_of(one)] for one in (state, real)]
    assert shapes[0] == shapes[1]


def turns(count: int, quick: int | None = None) -> list[Any]:
    """Every case (the first ``quick``) on one mesh in turn, and all on the others where there is time."""
    every = [(i, mesh) for i in range(count) for mesh in MESHES]
    quick = count if quick is None else quick
    now = [(i, MESHES[i % len(MESHES)]) for i in range(quick)]
    return [one if one in now else pytest.param(*one, marks=pytest.mark.slow) for one in every]


@pytest.mark.parametrize(("number", "mesh"), turns(len(RULES)))
def test_every_rule_asks_for_the_same_as_in_a_run(number: int, mesh: tuple[int, int]) -> None:
    check(scenario(mesh, optimizer=RULES[number].rule))


METHODS = list(COMPRESSIONS)


@pytest.mark.parametrize(("number", "mesh"), turns(len(METHODS)))
def test_every_compression_asks_for_the_same_as_in_a_run(number: int, mesh: tuple[int, int]) -> None:
    method = COMPRESSIONS[METHODS[number]].method
    axes = [axis for axis in ("replicas", "shards") if axis in method.axes]
    check(scenario(mesh, compression=CompressionSettings(**dict.fromkeys(axes, method))))


#: those with settings last, and with the slow tests
NAMES = sorted(CODECS, key=lambda name: "(" in name)


@pytest.mark.parametrize(("number", "mesh"), turns(len(NAMES), quick=sum("(" not in name for name in NAMES)))
def test_every_codec_has_the_same_payloads_as_in_a_run(number: int, mesh: tuple[int, int]) -> None:
    wire = WireSettings(params=NAMES[number], grads=NAMES[number], factors=NAMES[number])
    check(scenario(mesh, wire=wire, optimizer=OrthDion(lr=0.1, rank=2)), steps=1)


@pytest.mark.parametrize(
    "rule",
    [
        AdaOrthDion(lr=0.1, rank=3, rank_min=1, rank_multiple=1, adapt_every=100),
        AdaOrthDion(lr=0.1, rank=3, rank_min=1, rank_multiple=1, wire_form="pad_to_cap", adapt_every=100),
        AdaDionV2(lr=0.1, rank_fraction=0.5, rank_min=1, rank_multiple=1, adapt_every=100),
    ],
    ids=["active", "padded", "v2"],
)
def test_an_adaptive_rank_is_planned_as_it_starts(rule: Rule) -> None:
    check(scenario((2, 2), optimizer=rule), steps=3)


def test_an_adaptive_rank_stays_though_values_would_change_it() -> None:
    free = AdaOrthDion(lr=0.1, rank=3, rank_min=1, rank_multiple=1, step_up=1)
    planned, _ = steps_of(scenario((1, 4), optimizer=free), META, 3)
    run, _ = steps_of(scenario((1, 4), optimizer=free), CPU, 3)
    assert planned[0] == planned[1] == planned[2]
    assert run[0] != run[1]
    # but for the columns that grow at its end, the first step is that of the run
    assert without_growth(planned[0]) == without_growth(run[0])


def without_growth(ops: StepOps) -> list[tuple[Any, ...]]:
    """Leave out new columns, and the memory traffic of states that have them."""
    kept = (tuple(op for op in wave if getattr(op, "what", "") not in ("grow", "memory")) for wave in ops)
    return [wave for wave in kept if wave]


def test_periodic_rules_keep_their_period() -> None:
    planned, _ = steps_of(scenario((1, 4), optimizer=MuonBP(lr=0.1, period=3)), META, 4)
    assert planned[0] == planned[3] != planned[1] == planned[2]


def test_nothing_is_allocated_or_drawn() -> None:
    with nothing_drawn():
        huge = normal((10**6, 10**7), 0, "huge")
        noise = torch.rand((10**7, 10**6), generator=stream(0, "noise"))
    assert huge.device == noise.device == META
    assert (huge.dtype, huge.shape) == (torch.float64, (10**6, 10**7))
    # what is no keyed stream stays a number, and so does everything afterwards
    with nothing_drawn():
        assert torch.rand(2).device == CPU
    assert normal((2,), 0, "small").device == CPU


def test_the_worker_that_stands_for_all_knows_how_many_there_are() -> None:
    worker = shape_worker(MeshSettings(replicas=3, shards=5).shape, 0)
    assert (worker.count, worker.mesh.replicas.size, worker.mesh.shards.size) == (15, 3, 5)
    assert worker.mesh.shards.share(torch.empty(20, 2, device=META), -2).shape == (4, 2)

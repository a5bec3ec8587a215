"""Steps of thousands of workers: exact closed forms, by work that does not grow with rounds times workers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from simdist.communication.plans import collectives_named
from simdist.communication.trace import CollectiveOp, ComputeOp, StepOps
from simdist.execution import lanes
from simdist.execution.carrier import Carrier
from simdist.execution.compute_model import ComputeModel
from simdist.execution.overlap import FSDP, NoOverlap, Overlap
from simdist.execution.pricing import StepPricer
from simdist.network import Star, Topology

RATE, LATENCY = 4e11, 2e-6
#: optimizers send what does not divide: factors, Gram matrices, norms
PAYLOADS = (4, 1000, 123_457, 16_384 * 511 * 2 + 2, 2**20 + 1)


def step(mesh: tuple[int, int], units: int = 4) -> StepOps:
    replicas, shards = mesh
    unit = shards * 2**20
    waves: list[tuple[CollectiveOp | ComputeOp, ...]] = []
    for number in range(units):
        waves.append((CollectiveOp("all_gather", "shards", "param_gather", f"u{number}", "bf16", unit),))
        waves.append((ComputeOp(1e12, purpose="backward", tensor=f"u{number}"),))
        waves.append((CollectiveOp("reduce_scatter", "shards", "grad_reduce", f"u{number}", "fp32", 2 * unit),))
        if replicas > 1:
            size = 2**21 * replicas
            waves.append((CollectiveOp("all_reduce", "replicas", "grad_reduce", f"u{number}", "fp32", size),))
    waves.extend((CollectiveOp("all_reduce", "shards", "optimizer", f"m{size}", "fp32", size),) for size in PAYLOADS)
    return tuple(waves)


def pricer(topology: Topology, mesh: tuple[int, int], overlap: Overlap) -> StepPricer:
    workers = mesh[0] * mesh[1]
    compute = ComputeModel(4e14, (1.0,) * workers)
    return StepPricer(topology.network(workers), mesh, collectives_named("ring"), compute, overlap)


def ring(op: str, size: int, members: int) -> float:
    """A star's two links, and the longest chunk in every round: somebody always sends it."""
    rounds = (members - 1) * (2 if op == "all_reduce" else 1)
    return rounds * (2 * LATENCY + 8 * math.ceil(size / members) / RATE)


@pytest.mark.parametrize("mesh", [(1, 4096), (16, 256), (64, 64)])
def test_a_step_of_4096_workers_is_its_closed_form(mesh: tuple[int, int]) -> None:
    ops = step(mesh)
    timing = pricer(Star(bandwidth=RATE, latency=LATENCY), mesh, NoOverlap()).price(ops)
    members = {"shards": mesh[1], "replicas": mesh[0]}
    expected = sum(
        ring(op.op, op.payload_bytes, members[op.axis]) if isinstance(op, CollectiveOp) else 1e12 / 4e14
        for wave in ops
        for op in wave
        if isinstance(op, (CollectiveOp, ComputeOp))
    )
    assert timing.duration == pytest.approx(expected, rel=1e-12)
    assert max(timing.lag_after) == 0.0
    assert timing.begin.shape == (len(ops), 4096)


def test_equal_work_is_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers share hosts, so messages share links: a few rows of sizes on a host stand for 8190 rounds on 512."""
    drained: list[int] = []
    real = lanes.drain
    monkeypatch.setattr(lanes, "drain", lambda *what: (drained.append(len(what[1])), real(*what))[1])
    topology = Star(bandwidth=RATE, workers_per_host=8, host_bandwidth=3e12)
    pricer(topology, (1, 4096), NoOverlap()).price(step((1, 4096), units=40))
    assert set(drained) == {7}, "the messages within a host; the eighth has its links to itself"
    assert len(drained) <= (2 + len(PAYLOADS)) * 2 * 7


def test_an_overlapping_step_is_replayed_on_one_worker_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """HSDP's axes meet on every link, but all 1,024 workers are alike: a message stands for 1,024."""
    started: list[int] = []
    real = Carrier._start
    monkeypatch.setattr(Carrier, "_start", lambda self, *what: (started.append(1), real(self, *what))[1])
    mesh, units = (16, 64), 4
    timing = pricer(Star(bandwidth=RATE, latency=LATENCY), mesh, FSDP()).price(step(mesh, units))
    assert 0 < len(started) <= units * (2 * 63 + 2 * 15)
    assert np.ptp(timing.finish) == 0.0
    without = pricer(Star(bandwidth=RATE, latency=LATENCY), mesh, NoOverlap()).price(step(mesh, units))
    assert timing.duration < without.duration

"""The audit of values that should agree: norm and deviation, free of bytes, on both kinds of engine."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from simdist.program import MeshShape, Worker
from simdist.program.audit import Audit, audit
from simdist.program.random import normal
from tests.optimizers.harness import DRIVERS, Cohort, Driver, Outcome


def audited(driver: Driver, mesh: MeshShape, values: list[Tensor], **how: object) -> tuple[list[Audit], Outcome]:
    async def program(worker: Worker) -> Audit:
        return await audit(worker.labelled("optimizer", "x"), worker.ops.each(values.__getitem__), **how)  # type: ignore[arg-type]

    outcome = driver.run(mesh, program)
    return outcome.results, outcome


@pytest.mark.parametrize("driver", DRIVERS, ids=lambda d: d.name)
@pytest.mark.parametrize("mesh", [MeshShape(3, 1), MeshShape(2, 2), MeshShape(3, 2)], ids=str)
def test_replicas_are_compared_rows_by_rows(driver: Driver, mesh: MeshShape) -> None:
    """A stack of two matrices whose rows are sharded; every worker learns the same."""
    whole = [normal((2, 4 * mesh.shards, 3), 0, "x", replica) for replica in range(mesh.replicas)]
    values = [whole[w // mesh.shards][:, 4 * (w % mesh.shards) :][:, :4] for w in range(mesh.workers)]
    found, outcome = audited(driver, mesh, values)
    stacked = torch.stack(whole)
    mean = stacked.mean(dim=0)
    norm = mean.norm(dim=(-2, -1))
    drift = (stacked - mean).square().sum(dim=(-2, -1)).mean(dim=0).sqrt() / norm
    for result in found:
        torch.testing.assert_close(result.norm.reshape(-1, 2)[0], norm)
        torch.testing.assert_close(result.drift.reshape(-1, 2)[0], drift)
    assert not outcome.transfers


def test_workers_are_compared_whole() -> None:
    """Flat buffers that every worker keeps for itself."""
    mesh = MeshShape(2, 2)
    values = [normal((7,), 0, "x", w) for w in range(4)]
    found, outcome = audited(DRIVERS[0], mesh, values, over="workers", dims=1)
    stacked = torch.stack(values)
    mean = stacked.mean(dim=0)
    for result in found:
        torch.testing.assert_close(result.norm, mean.norm())
        torch.testing.assert_close(result.drift, (stacked - mean).square().sum(dim=-1).mean().sqrt() / mean.norm())
    assert not outcome.transfers


@pytest.mark.parametrize("driver", DRIVERS, ids=lambda d: d.name)
def test_equal_values_do_not_drift_and_opposite_ones_drift_without_end(driver: Driver) -> None:
    mesh, x = MeshShape(2, 1), normal((1, 4, 3), 0, "x")
    for values, expected in (([x, x], 0.0), ([x, -x], float("inf")), ([0 * x, 0 * x], 0.0)):
        found, _ = audited(driver, mesh, values)
        assert all(float(result.drift) == expected for result in found)
    alone, _ = audited(driver, MeshShape(1, 1), [x])
    assert float(alone[0].drift) == 0
    assert isinstance(driver, Cohort) or alone[0].norm.shape == (1,)

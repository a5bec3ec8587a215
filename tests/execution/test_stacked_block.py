"""Stacked blocks of one mesh agree with the inline reference: same operations, parameters to rounding."""

from __future__ import annotations

import queue
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from simdist.assembly import build_job, build_program, build_task, build_wiring
from simdist.errors import InputError
from simdist.execution.engine import LocalEngine
from simdist.execution.exchange import Exchange
from simdist.execution.lockstep import LockstepBlock, StepOutcome
from simdist.execution.stacked_block import StackedBlockResolver, block_cohort, part_of_mesh
from simdist.program import MeshShape
from simdist.scenario import Scenario
from tests.execution.threads import SECONDS, Threads

OPTIMIZERS = {
    "adamw": {"name": "adamw", "lr": 0.02},
    "muon": {"name": "muon", "lr": 0.02},
    "dion": {"name": "dion", "lr": 0.02, "rank": 2},
    "orth_dion": {"name": "orth_dion", "lr": 0.02, "rank": 2},
}
BLOCKS = [
    ((2, 4), [range(4), range(4, 8)]),  # a replica each
    ((2, 4), [range(2), range(2, 4), range(4, 6), range(6, 8)]),  # parts of replicas
    ((4, 2), [range(4), range(4, 6), range(6, 8)]),  # two replicas, one, one
    ((1, 4), [range(3), range(3, 4)]),  # FSDP, unequal parts
    ((4, 1), [range(2), range(2, 4)]),  # DDP
]


def scenario(optimizer: str, mesh: tuple[int, int], grads: str) -> Scenario:
    return Scenario.from_dict(
        {
            "steps": 3,
            "dtype": "float64",
            "workload": {"name": "teacher", "rows": 9, "columns": 8, "matrices": 3, "heterogeneity": 0.1},
            "mesh": {"replicas": mesh[0], "shards": mesh[1]},
            "optimizer": OPTIMIZERS[optimizer],
            "wire": {"params": "fp64", "grads": grads, "factors": "fp64", "statistics": "fp64"},
            "evaluation": {"every": 1},
            "diagnostics": {"every": 1},
        }
    )


def train(chosen: Scenario, exchange: Exchange) -> tuple[dict[str, Tensor], list[StepOutcome]]:
    mesh = chosen.mesh.shape
    program = build_program(chosen, build_job(chosen, build_task(chosen)))
    worker = block_cohort(mesh, exchange.blocks[exchange.me], chosen.seed)
    block = LockstepBlock(program, [worker], StackedBlockResolver(mesh, build_wiring(chosen), exchange))
    block.start()
    outcomes = [block.step(step) for step in range(1, chosen.steps + 1)]
    return block.parameters(), outcomes


#: lossless, numbers each by itself, messages with noise of each member's own, sums in a coarse format
GRADS = ["fp64", "bf16", "int8(bucket=7)", "bf16(accumulate=wire)"]


@pytest.mark.parametrize(
    ("optimizer", "grads"), [(o, g) for o in OPTIMIZERS for g in GRADS if g in GRADS[:2] or o == "adamw"]
)
@pytest.mark.parametrize(("mesh", "blocks"), BLOCKS)
def test_stacked_blocks_agree_with_inline(
    optimizer: str, mesh: tuple[int, int], blocks: list[range], grads: str
) -> None:
    chosen = scenario(optimizer, mesh, grads)
    job = build_job(chosen, build_task(chosen))
    reference = LocalEngine.inline(build_program(chosen, job), chosen.mesh.shape, build_wiring(chosen), chosen.seed)
    with reference as engine:
        expected = list(engine.steps(1, chosen.steps))
        params = engine.parameters()
    pipes: dict[tuple[int, int], queue.Queue[Any]] = {
        (a, b): queue.Queue() for a in range(len(blocks)) for b in range(len(blocks)) if a != b
    }
    with ThreadPoolExecutor(len(blocks)) as pool:
        futures = [pool.submit(train, chosen, Threads(blocks, me, pipes)) for me in range(len(blocks))]
        done = [future.result(timeout=SECONDS) for future in futures]
    assert all(pipe.empty() for pipe in pipes.values()), "something was sent that nobody waited for"
    for found, outcomes in done:
        assert [outcome.ops for outcome in outcomes] == [outcome.ops for outcome in expected]
        for name, x in params.items():
            torch.testing.assert_close(found[name], x, rtol=0, atol=1e-9)
        for outcome, reference_outcome in zip(outcomes, expected, strict=True):
            assert outcome.report == pytest.approx(reference_outcome.report, rel=1e-8)


def test_a_block_must_be_a_rectangle() -> None:
    assert part_of_mesh(MeshShape(2, 4), range(4, 8)) == MeshShape(1, 4)
    assert part_of_mesh(MeshShape(4, 2), range(2, 6)) == MeshShape(2, 2)
    with pytest.raises(InputError, match="whole replicas or a part of one replica"):
        part_of_mesh(MeshShape(2, 4), range(2, 6))

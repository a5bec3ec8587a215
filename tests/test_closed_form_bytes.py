"""The ledger of a real training step equals closed forms of parameter shapes alone, to the byte.

The forms are written here anew from the cards: base traffic of FSDP, HSDP and DDP (card 0), low-rank factors and
Gram matrices (cards 1 and 3), whole momentum matrices (card 5). Totals are over all workers: every group of n sends
(n-1) S for an all-gather, reduce-scatter or all-to-all of S bytes, and 2 (n-1) S for an all-reduce.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from math import ceil, prod
from typing import Any

import pytest

from simdist.assembly import build_engine, build_job, build_pricer, build_task
from simdist.communication.ledger import Ledger
from simdist.communication.trace import CollectiveOp
from simdist.scenario import Scenario

WIDTH, HIDDEN, DEPTH, VOCABULARY, RANK = 12, 13, 2, 256, 2
GPT = {
    "name": "byte_gpt",
    "width": WIDTH,
    "hidden": HIDDEN,
    "depth": DEPTH,
    "heads": 2,
    "context": 8,
    "batch": 1,
    "validation_batches": 1,
}
#: the main job's kind, and its two limits; 5 and 13 divide nothing here, so rows are padded
MESHES = [(2, 4), (1, 4), (4, 1), (2, 5), (3, 2)]
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "sgd": {},
    "muon": {},
    "muon gather": {"form": "gather"},
    "dion": {"rank": RANK},
    "orth_dion": {"rank": RANK},
    "orth_dion one pass": {"rank": RANK, "gram_passes": 1},
    "orth_dion polar": {"rank": RANK, "right_factor": "polar"},
    "orth_dion all to all": {"rank": RANK, "orthonormalization": "all_to_all"},
    "orth_dion block": {"rank": RANK, "right_factor": "block_qr", "block": 1},
    "orth_dion svd": {"rank": RANK, "right_factor": "exact_svd"},
    "dion averaged": {"rank": RANK, "average_buffers_every": 1},
    "dion2": {"fraction": 0.5},
    "normuon": {},
    "lion": {},
    "signum": {},
    # factors as large as the gradient: replicas average gradients
    "orth_dion full rank": {"rank_fraction": 1.0},
}
WIDTHS = {"fp32": 4, "bf16": 2, "fp16": 2, "fp64": 8}
WIRES = [
    {"params": "fp32", "grads": "fp32", "factors": "fp32", "statistics": "fp32"},
    {"params": "bf16", "grads": "fp32", "factors": "bf16", "statistics": "fp32"},
    {"params": "fp16", "grads": "bf16", "factors": "fp32", "statistics": "fp64"},
]

MATRICES = {"square": (WIDTH, WIDTH), "up": (HIDDEN, WIDTH), "down": (WIDTH, HIDDEN)}
#: matrices of each shape in the whole model: q, k, v, out; gate, up; down
COUNTS = {"square": 4 * DEPTH, "up": 2 * DEPTH, "down": DEPTH}
ROOT: list[tuple[int, ...]] = [(VOCABULARY, WIDTH), (WIDTH,), (VOCABULARY, WIDTH)]
BLOCK_VECTORS: list[tuple[int, ...]] = [(WIDTH,), (WIDTH,)]
BLOCK_MATRICES: list[tuple[int, ...]] = [*[MATRICES["square"]] * 4, *[MATRICES["up"]] * 2, MATRICES["down"]]


def rank_of(optimizer: str) -> int:
    return WIDTH if optimizer == "orth_dion full rank" else RANK


def factors_sync_replicas(optimizer: str, shape: tuple[int, int], replicas: int) -> bool:
    m, n = shape
    low_rank = optimizer.split()[0] in ("dion", "orth_dion") and optimizer != "orth_dion svd"
    return replicas > 1 and low_rank and (m + n) * rank_of(optimizer) < m * n


def closed_form(
    optimizer: str, replicas: int, shards: int, wire: dict[str, str], reshard: bool | None
) -> Counter[tuple[str, str]]:
    """Bytes that all workers together send in a step, by (purpose, axis)."""
    params, grads, factors, statistics = (WIDTHS[wire[k]] for k in ("params", "grads", "factors", "statistics"))

    def padded(shapes: list[tuple[int, ...]]) -> int:
        return sum(shards * ceil(shape[0] / shards) * prod(shape[1:]) for shape in shapes)

    def shard_axis(payload: int) -> int:
        return replicas * (shards - 1) * payload

    def replica_axis(payload: int) -> int:
        return shards * (replicas - 1) * payload

    total: Counter[tuple[str, str]] = Counter()

    # card 0: every unit is gathered forward, and again backward unless it was kept
    root_gathers = 2 if reshard is True else 1
    block_gathers = 1 if reshard is False else 2
    gathered = root_gathers * padded(ROOT) + DEPTH * block_gathers * padded(BLOCK_VECTORS + BLOCK_MATRICES)
    total["param_gather", "shards"] = shard_axis(gathered * params)
    everything = padded(ROOT) + DEPTH * padded(BLOCK_VECTORS + BLOCK_MATRICES)
    total["grad_reduce", "shards"] = shard_axis(everything * grads)
    averaged = ROOT + DEPTH * BLOCK_VECTORS
    averaged += [s for s in DEPTH * BLOCK_MATRICES if not factors_sync_replicas(optimizer, (s[0], s[1]), replicas)]
    total["grad_reduce", "replicas"] = 2 * replica_axis(padded(averaged) // shards * grads)

    owners = shards if shards > 1 else replicas
    for kind, (m, n) in MATRICES.items():
        rows, count = ceil(m / shards), COUNTS[kind]
        dealt = ceil(count / owners) * owners
        if optimizer in ("muon", "normuon"):
            # card 5: momentum rows to the owners and updates back; under DDP only the updates travel
            total["optimizer", "shards"] += shard_axis(2 * dealt * rows * n * factors)
            if shards == 1:
                total["optimizer", "replicas"] += replica_axis(dealt * m * n * factors)
            if optimizer == "normuon":  # two squared norms of every matrix, by one all-reduce
                total["optimizer", "shards"] += 2 * shard_axis(2 * dealt * statistics)
        elif optimizer in ("muon gather", "orth_dion svd"):
            # whole momenta for everybody; the pairs of an SVD are taken there
            matrices = count if optimizer == "muon gather" else dealt
            total["optimizer", "shards"] += shard_axis(matrices * shards * rows * n * factors)
        elif optimizer == "dion2":
            # card 4, local scope: the chosen rows to the owners and back
            total["optimizer", "shards"] += shard_axis(2 * dealt * ceil(0.5 * rows) * n * factors)
            if shards == 1:  # along the shorter side of whole matrices
                chosen = ceil(0.5 * min(m, n)) * max(m, n)
                total["optimizer", "replicas"] += replica_axis(dealt * chosen * factors)
        elif "dion" in optimizer:
            # cards 1 and 3: P is n x r and scattered to owners, U comes back; W is this worker's rows x r
            r = rank_of(optimizer)
            synced = factors_sync_replicas(optimizer, (m, n), replicas)
            total["optimizer", "shards"] += shard_axis(2 * dealt * n * r * factors)
            # r norms, or an r x r Gram matrix per pass (block_qr with blocks of one: a number per column and pass)
            numbers = {"dion": r, "dion averaged": r, "orth_dion one pass": r * r, "orth_dion block": 2 * r}
            if optimizer == "orth_dion all to all":
                total["optimizer", "shards"] += 2 * shard_axis(dealt * rows * r * factors)
            else:
                total["optimizer", "shards"] += 2 * shard_axis(dealt * numbers.get(optimizer, 2 * r * r) * statistics)
            if optimizer == "dion averaged" and synced:
                total["optimizer", "replicas"] += 2 * replica_axis(dealt * rows * n * factors)
            if shards > 1 and synced:
                total["optimizer", "replicas"] += 2 * replica_axis((dealt // shards * n + dealt * rows) * r * factors)
            elif shards == 1 and synced:
                total["optimizer", "replicas"] += 2 * replica_axis(dealt * (m + n) * r * factors)
            elif shards == 1:
                total["optimizer", "replicas"] += replica_axis(dealt * n * r * factors)
    return +total


@cache
def task() -> Any:
    return build_task(scenario("adamw", (1, 1), WIRES[0], None))


def scenario(optimizer: str, mesh: tuple[int, int], wire: dict[str, str], reshard: bool | None) -> Scenario:
    return Scenario.from_dict(
        {
            "steps": 1,
            "workload": GPT,
            "mesh": {"replicas": mesh[0], "shards": mesh[1], "reshard_after_forward": reshard},
            "optimizer": {"name": optimizer.split()[0], "lr": 0.01, **OPTIMIZERS[optimizer]},
            "wire": wire,
            "engine": {"name": "stacked", "threads": 1},
        }
    )


def booked(chosen: Scenario) -> Counter[tuple[str, str]]:
    """One real step: what the ledger says, summed by purpose and axis."""
    ledger = Ledger(chosen.mesh.shape, build_pricer(chosen).plans)
    with build_engine(chosen, build_job(chosen, task())) as engine:
        (outcome,) = engine.steps(1, 1)
    count = sum(isinstance(op, CollectiveOp) for wave in outcome.ops for op in wave)
    ledger.add_step(1, outcome.ops, [(0.0, 0.0)] * count)
    table = ledger.columns()
    total: Counter[tuple[str, str]] = Counter()
    for purpose, axis, sent in zip(table["purpose"], table["axis"], table["sent_bytes_total"], strict=True):
        total[str(purpose), str(axis)] += int(sent)  # type: ignore[call-overload]
    assert sum(total.values()) == ledger.total_bytes
    return total


def assert_closed_form(
    optimizer: str, mesh: tuple[int, int], wire: dict[str, str], reshard: bool | None = None
) -> None:
    expected = closed_form(optimizer, *mesh, wire, reshard)
    assert sum(expected.values()) > 0
    assert booked(scenario(optimizer, mesh, wire, reshard)) == expected


@pytest.mark.parametrize("wire", WIRES, ids=lambda wire: "-".join(wire.values()))
@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_ledger_is_the_closed_form(optimizer: str, mesh: tuple[int, int], wire: dict[str, str]) -> None:
    assert_closed_form(optimizer, mesh, wire)


@pytest.mark.parametrize("reshard", [True, False])
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_gathering_again_or_not_is_booked(mesh: tuple[int, int], reshard: bool) -> None:
    assert_closed_form("orth_dion", mesh, WIRES[1], reshard)


def test_factors_do_replace_gradients_here() -> None:
    """Otherwise nothing above would have seen the compressed path."""
    one, other = (closed_form(name, 2, 4, WIRES[0], None) for name in ("adamw", "orth_dion"))
    assert one["grad_reduce", "replicas"] > other["grad_reduce", "replicas"] > 0
    assert other["optimizer", "replicas"] > 0

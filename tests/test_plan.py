"""``simdist plan`` against real runs of small models, against closed forms, and against what is published."""

from __future__ import annotations

import json
import subprocess
import sys
from math import ceil, prod
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from simdist import running
from simdist.loading import load_scenario, override
from simdist.optimizers import EF21Muon, OrthDion
from simdist.plan_command import combinations, write
from simdist.planned import Planned, plan
from simdist.scenario import Scenario
from simdist.workloads.presets import presets

ROOT = Path(__file__).parents[1]
TIMES = ["simulated_seconds", "compute_seconds", "exposed_comm_seconds", "hidden_comm_seconds"]

#: a decoder with everything that large ones have, and one as GPT-2 is
LLAMA = {"name": "decoder", "width": 16, "depth": 2, "heads": 4, "kv_heads": 2, "hidden": 24, "vocabulary": 256}
GPT2 = {**LLAMA, "kv_heads": None, "norm": "layer", "positions": "learned", "mlp": "gelu", "biases": True, "tied": True}
SMALL = {"context": 8, "batch": 2}
QUICKSTART = [f"workload.{key}" for key in ("width=16", "depth=2", "heads=2", "context=16", "batch=2")]

#: changes of a base scenario in which everything that decides bytes and seconds occurs
CASES: dict[str, dict[str, Any]] = {
    "fsdp, orth_dion, overlap": {
        "workload": {**LLAMA, **SMALL},
        "mesh.shards": 4,
        "optimizer": {"name": "orth_dion", "lr": 0.1, "rank": 4},
        "overlap": {"policy": "fsdp"},
        "wire": {"params": "bf16", "grads": "int8", "factors": "bf16", "vectors": "fp32"},
        "network.collectives": "nccl",
    },
    "hsdp, muon, codecs with noise": {
        "workload": {**GPT2, **SMALL},
        "mesh.replicas": 2,
        "mesh.shards": 2,
        "optimizer": {"name": "muon", "lr": 0.1},
        "wire": {"params": "qsdp", "grads": "int4", "statistics": "fp32"},
        "network.collectives": "auto",
        "compute.speeds": {1: 0.5},
    },
    "hsdp, dion, overlap, stragglers": {
        "mesh.replicas": 2,
        "mesh.shards": 3,
        "optimizer": {"name": "dion", "lr": 0.1, "rank": 2, "average_buffers_every": 2},
        "overlap": {"policy": "fsdp", "prefetch": 2},
        "compute.stragglers": {"name": "lognormal", "sigma": 0.3},
        "diagnostics.every": 2,
    },
    "ddp, compression, buckets": {
        "mesh.replicas": 4,
        "optimizer": {"name": "sgd", "lr": 0.1},
        "compression.replicas": {"name": "error_feedback", "codec": "topk(fraction=0.1)"},
        "overlap": {"policy": "ddp", "bucket": 2000, "first_bucket": 500},
        "network.collectives": "halving_doubling",
    },
    "fsdp, muon every other step, never resharded": {
        "mesh.shards": 4,
        "mesh.reshard_after_forward": False,
        "optimizer": {"name": "muon_bp", "lr": 0.1, "period": 2},
        "evaluation.every": 1,
        "network": {"topology": "two-level", "island_size": 2, "bandwidth": "10Mbit/s", "latency": "1ms"},
    },
}


def base(**changes: Any) -> Scenario:
    start = Scenario.from_dict(
        {
            "steps": 3,
            "workload": {"name": "teacher", "rows": 12, "columns": 10, "matrices": 3},
            "optimizer": {"name": "adamw", "lr": 0.1},
            "network": {"topology": "star", "bandwidth": "10Mbit/s", "latency": "1ms"},
            "compute": {"device": "cpu-core"},
        }
    )
    return override(start, changes)


def tables(folder: Path) -> dict[str, Any]:
    """Return what a plan and a run must share: every column of the ledger, times and bytes of every step."""
    steps = pq.read_table(folder / "steps.parquet")
    kept = ["step", *TIMES, "sent_bytes_total", "sent_bytes_per_worker"]
    summary = json.loads((folder / "summary.json").read_text())
    return {
        "ledger": pq.read_table(folder / "ledger.parquet").to_pydict(),
        "steps": steps.select(kept).to_pydict(),
        "sha256": summary["ledger_sha256"],
        "program": (folder / "program.json").read_text(),
    }


def same_as_run(scenario: Scenario, folder: Path) -> None:
    write(plan(scenario), folder / "plan")
    running.run(scenario, out=folder / "run", progress=False)
    planned, run = tables(folder / "plan"), tables(folder / "run")
    assert len(run["ledger"]["step"]) > 0
    for part, rows in run.items():
        assert planned[part] == rows, part


@pytest.mark.parametrize("case", CASES)
def test_a_plan_is_the_ledger_and_the_times_of_the_run(case: str, tmp_path: Path) -> None:
    same_as_run(base(**CASES[case]), tmp_path)


@pytest.mark.parametrize("file", ["quickstart", "custom_model", "wan_regions"])
def test_a_scenario_file_is_planned_as_it_runs(file: str, tmp_path: Path) -> None:
    small = QUICKSTART if file != "custom_model" else ["workload.batch=4"]
    same_as_run(load_scenario(f"{ROOT}/scenarios/{file}.py", ["steps=2", "engine.name=inline", *small]), tmp_path)


# -- closed forms at 8 billion parameters ---------------------------------------------------------------------


def at_8b(shards: int, **changes: Any) -> Planned:
    changes = {"mesh.shards": shards, "network.collectives": "ring", "steps": 1, **changes}
    (scenario,) = combinations("llama3-8b", changes, {}).values()
    return plan(scenario)


def matrices() -> dict[tuple[int, int], int]:
    """Hidden matrices of Llama 3 8B by shape."""
    found: dict[tuple[int, int], int] = {}
    for m, n in [(4096, 4096), (1024, 4096), (1024, 4096), (4096, 4096), (14336, 4096), (14336, 4096), (4096, 14336)]:
        found[m, n] = found.get((m, n), 0) + 32
    return found


def dealt(count: int, owners: int) -> int:
    return ceil(count / owners) * owners


def test_dion_sends_what_its_card_says() -> None:
    """Card 3 (b): 2 ring(F) n r b for the factors and 2 ring(F) 4 r for the column norms, dummies included."""
    shards, b = 64, 2
    planned = at_8b(shards, optimizer={"name": "dion", "lr": 0.1, "rank_fraction": 0.25})
    expected = sum(
        dealt(count, shards) * 2 * (shards - 1) * (n * r * b + 4 * r) // shards
        for (m, n), count in matrices().items()
        for r in [min(m, n) // 4]
    )
    assert planned.sent["optimizer", "shards"] == expected


@pytest.mark.parametrize(("form", "share"), [("owner", 2 / 8), ("gather", 1)])
def test_muon_sends_what_its_card_says(form: str, share: float) -> None:
    """Card 5: 2 (F-1)/F^2 m n b by owners, (F-1)/F m n b gathered."""
    shards, b = 8, 2
    planned = at_8b(shards, optimizer={"name": "muon", "lr": 0.1, "form": form})
    expected = sum(count * m * n * b * share * (shards - 1) / shards for (m, n), count in matrices().items())
    assert planned.sent["optimizer", "shards"] == expected


def test_between_replicas_dion_sends_factors_and_adamw_gradients() -> None:
    """Cards 0 and 3 (c): 2 ring(R) (m + n) r b / F in place of 2 ring(R) m n b / F."""
    changes = {"mesh.replicas": 4, "overlap.policy": "none"}
    dion = at_8b(8, optimizer={"name": "dion", "lr": 0.1, "rank_fraction": 0.25}, **changes)
    adamw = at_8b(8, **changes)
    two_rings = 2 * 3 / 4 * 2 / 8
    factors = sum(count * (m + n) * (min(m, n) // 4) for (m, n), count in matrices().items())
    gradients = sum(count * m * n for (m, n), count in matrices().items())
    assert dion.sent["optimizer", "replicas"] == factors * two_rings
    saved = adamw.sent["grad_reduce", "replicas"] - dion.sent["grad_reduce", "replicas"]
    assert saved == gradients * two_rings


def test_fsdp_gathers_blocks_twice_and_the_root_once() -> None:
    planned = at_8b(8)
    root = 2 * 128256 * 4096 + 4096
    blocks = presets.get("llama3-8b").parameters - root
    assert planned.sent["param_gather", "shards"] == (2 * blocks + root) * 2 * 7 / 8
    assert planned.sent["grad_reduce", "shards"] == (blocks + root) * 2 * 7 / 8


# -- what is published --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "how"),
    [
        (0.125, "gram"),
        (0.25, "all_to_all"),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in [(0.25, "gram"), (0.5, "gram"), (0.125, "all_to_all")]),
        pytest.param(0.5, "all_to_all", marks=pytest.mark.slow),
    ],
)
def test_the_order_of_step_times_at_17_billion_on_eight_a40_is_the_papers(share: float, how: str) -> None:
    """arXiv 2605.16341: Orth-Dion a little slower than Dion, Ada-Orth-Dion (rank times 0.93) between, Muon slowest."""
    low = {"lr": 0.1, "rank_fraction": share}
    orth = {**low, "orthonormalization": how}
    rules = [
        {"name": "dion", **low},
        {"name": "ada_orth_dion", **orth, "rank_fraction": round(0.93 * share, 6)},
        {"name": "orth_dion", **orth},
        {"name": "muon", "lr": 0.1},
    ]
    on = {"compute.device": "a40", "network.bandwidth": "200Gbit/s"}
    points = combinations("llama3-17.1b", on, {"optimizer": rules}).values()
    seconds = [plan(point).step_seconds for point in points]
    assert seconds == sorted(seconds)
    dion, adaptive, fixed, muon = seconds
    # "slightly", unless half of all columns are orthonormalised by Gram matrices
    assert fixed < 1.07 * dion or (share, how) == (0.5, "gram")
    assert muon > 1.5 * dion
    # with the cheaper form and the shares that the paper trains at 320M, equal to Dion within a percent or two
    assert adaptive < 1.021 * dion or how == "gram"


# -- limits ---------------------------------------------------------------------------------------------------------


def test_what_steers_by_values_is_refused_by_name() -> None:
    from simdist.errors import InputError

    with pytest.raises(InputError, match=r"'pytorch_optimizer:Prodigy'.*reads values of tensors"):
        plan(base(optimizer={"name": "pytorch_optimizer:Prodigy", "lr": 1.0}))
    with pytest.raises(InputError, match=r"got 'async_server'.*lock-step"):
        plan(base(schedule={"name": "async_server"}, **{"mesh.replicas": 3}))


def test_a_compressed_rule_with_memory_is_planned_in_its_later_steps_too() -> None:
    rule = EF21Muon(lr=0.1, codec="topk(fraction=0.5)", start="dense")
    ops = plan(base(**{"mesh.replicas": 3}).model_copy(update={"optimizer": rule})).ops
    assert ops[0] != ops[1] == ops[2]


def test_phases_add_up_to_the_step() -> None:
    planned = plan(base(**{"mesh.shards": 4, "optimizer": OrthDion(lr=0.1, rank=2)}))
    assert sum(planned.phases.values()) == pytest.approx(planned.step_seconds, rel=1e-12)
    assert all(seconds > 0 for seconds in planned.phases.values())
    spent = planned.split
    assert spent["compute_seconds"] + spent["exposed_comm_seconds"] == pytest.approx(planned.step_seconds, rel=1e-12)
    assert sum(planned.busy.values()) == pytest.approx(spent["compute_seconds"], rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("replicas", "shards"), [(32, 128), (1, 4096)])
def test_405_billion_parameters_on_4096_workers_take_a_minute_and_4_gigabytes(replicas: int, shards: int) -> None:
    """Muon's all-to-all among 4,096 is 17 million messages at once."""
    code = f"""
import resource, time
from simdist.plan_command import combinations
from simdist.planned import plan
on = {{"mesh.replicas": {replicas}, "mesh.shards": {shards}}}
rules = {{"optimizer.name": ["adamw", "muon", "dion", "orth_dion"]}}
for name, point in combinations("llama3-405b", on, rules).items():
    began = time.process_time()
    assert plan(point).parameters == 405853388800
    print(name, time.process_time() - began)
    assert time.process_time() - began < 60
assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4e6
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_parameters_are_those_published() -> None:
    for name, preset in presets.items():
        specs = [*preset.model.root_specs(), *preset.model.block_specs("") * preset.model.depth]
        assert sum(prod(spec.shape) for spec in specs) == preset.parameters, name

"""Compression as a scenario names it: keys, refusals, whole runs under several optimizers, and diagnostics."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from simdist.assembly import build_engine, build_job, build_task
from simdist.communication.trace import CollectiveOp
from simdist.compression import DeMo
from simdist.errors import InputError
from simdist.execution.lockstep import StepOutcome
from simdist.loading import load_scenario, override, parse_set
from simdist.running import run
from simdist.scenario import Scenario
from simdist.schedules.every_step import WorkerState
from tests.compression.harness import DDP, SHAPES, feed, random_gradient

TEACHER = {"name": "teacher", "rows": 9, "columns": 8, "matrices": 2, "heterogeneity": 0.1}
POWERSGD = {"name": "powersgd", "rank": 2, "min_rate": 0.9}


def scenario(**changes: Any) -> Scenario:
    plain: dict[str, Any] = {
        "steps": 5,
        "workload": TEACHER,
        "mesh": {"replicas": 2, "shards": 2},
        "optimizer": {"name": "adamw", "lr": 0.02},
        "engine": {"threads": 1},
    }
    return Scenario.from_dict({**plain, **changes})


def with_set(*texts: str, **changes: Any) -> Scenario:
    return override(scenario(**changes), parse_set(texts))


# -- keys ------------------------------------------------------------------------------------------------------------


def test_set_makes_the_section() -> None:
    found = with_set("compression.replicas.name=powersgd", "compression.replicas.rank=4").compression
    assert (found.replicas.name, found.replicas.rank, found.shards) == ("powersgd", 4, None)
    # in any order
    assert with_set("compression.replicas.rank=4", "compression.replicas.name=powersgd").compression == found
    assert with_set("compression.shards=ef21").compression.shards.name == "ef21"


def test_another_method_starts_afresh() -> None:
    section = {"replicas": POWERSGD}
    assert with_set("compression.replicas.rank=3", compression=section).compression.replicas.min_rate == 0.9
    for text in ("compression.replicas.name=demo", "compression.replicas=demo"):
        assert with_set(text, compression=section).compression.replicas.name == "demo"
    assert with_set("compression.replicas=null", compression=section).compression.replicas is None


@pytest.mark.parametrize(
    ("texts", "fragments"),
    [
        (["compression.replicas=powersdg"], ["compression.replicas.name: ", "Did you mean 'powersgd'?"]),
        (
            ["compression.replicas.name=powersgd", "compression.replicas.ranc=2"],
            ["compression.replicas.ranc", "'rank'"],
        ),
        (["compression.replicas.name=powersgd", "compression.replicas.rank=0"], ["compression.replicas.rank: got 0"]),
        (["compression.replica=powersgd"], ["compression.replica: ", "Did you mean 'replicas'?"]),
        (["compression.replicas=3"], ["compression.replicas: got 3; expected a gradient compression by name"]),
        (["compression.replicas.rank=3"], ["compression.replicas.name", "got nothing"]),
        (["compression=powersgd"], ["compression: got 'powersgd'; expected a section"]),
        (["compression.shards=demo"], ["compression.shards: got 'demo'", "expected it under compression.replicas"]),
        (
            ["compression.replicas.name=error_feedback", "compression.replicas.codec=topk(kk=3)"],
            ["compression.replicas.codec: got codec 'topk(kk=3)': it has no setting 'kk'", "Did you mean 'k'?"],
        ),
        (
            ["compression.shards.name=ef21", "compression.shards.codec=tokp"],
            ["compression.shards.codec: got unknown codec 'tokp'", "Did you mean 'topk'?"],
        ),
        (["compression.shards.name=ef21", "compression.shards.eta=0"], ["compression.shards.eta: got 0", "above 0"]),
        (["compression.replicas.name=majority_vote", "compression.replicas.beta=2"], ["beta: got 2", "from 0 to 1"]),
        (
            ["compression.replicas=powersgd", "schedule=async_server"],
            ["compression.replicas: got 'powersgd' with schedule 'async_server'", "expected schedule 'every_step'"],
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_names_the_key(texts: list[str], fragments: list[str]) -> None:
    with pytest.raises(InputError) as refused:
        with_set(*texts)
    for fragment in ("got", "expected", *fragments):
        assert fragment in str(refused.value)


def test_a_scenario_survives_its_file(tmp_path: Path) -> None:
    section = {
        "replicas": {"name": "demo", "k": 3, "index": "packed", "values": "bf16"},
        "shards": {"name": "error_feedback", "codec": "topk(k=5, values=bf16)", "decay": 0.9, "way_back": "exact"},
    }
    one = scenario(compression=section)
    file = tmp_path / "scenario.yaml"
    file.write_text(one.to_yaml())
    again = load_scenario(str(file))
    assert again == one
    assert again.compression.shards.codec == "topk(k=5, values=bf16)"
    assert load_scenario(str(file), ["compression.shards.codec=sign"]).compression.shards.codec == "sign"


# -- runs --------------------------------------------------------------------------------------------------------------


def train(chosen: Scenario) -> tuple[list[WorkerState], list[StepOutcome], dict[str, torch.Tensor]]:
    with build_engine(chosen, build_job(chosen, build_task(chosen))) as engine:
        outcomes = list(engine.steps(1, chosen.steps))
        states = [state for state in getattr(engine, "states", []) if isinstance(state, WorkerState)]
        return states, outcomes, engine.parameters()


METHODS: dict[str, dict[str, Any]] = {
    "topk": {"name": "error_feedback", "codec": "topk(k=2)"},
    "sign": {"name": "error_feedback", "codec": "sign"},
    "bf16": {"name": "error_feedback", "codec": "bf16"},
    "ef21": {"name": "ef21", "codec": "sign", "eta": 0.5},
    "powersgd": POWERSGD,
    "demo": {"name": "demo", "k": 4, "chunk": 8},
    "majority_vote": {"name": "majority_vote"},
}


@pytest.mark.parametrize("wire", [{}, {"grads": "bf16", "factors": "int8"}], ids=["fp32", "lossy"])
@pytest.mark.parametrize(
    "optimizer", [{"name": "adamw"}, {"name": "muon"}, {"name": "orth_dion", "rank": 2}], ids=lambda o: o["name"]
)
@pytest.mark.parametrize("key", METHODS)
def test_replicas_end_bitwise_equal(key: str, optimizer: dict[str, Any], wire: dict[str, str]) -> None:
    method = METHODS[key]
    axes = ["replicas"] if key == "demo" else ["replicas", "shards"]
    chosen = scenario(optimizer={**optimizer, "lr": 0.02}, compression=dict.fromkeys(axes, method), wire=wire)
    states, _, _ = train(chosen)
    for worker, state in enumerate(states):
        for x, y in zip(state.params, states[worker % 2].params, strict=True):
            assert x.isfinite().all()
            assert torch.equal(x, y)


@pytest.mark.parametrize("key", METHODS)
def test_what_syncs_replicas_by_itself_is_left_alone(key: str) -> None:
    """Dion's factors bring matrices together; vectors, which go to AdamW, are compressed."""
    dion = {"name": "orth_dion", "lr": 0.02, "rank": 2}
    memories = {}
    for name, optimizer in (("dion", dion), ("adamw", {"name": "adamw", "lr": 0.02})):
        states, outcomes, _ = train(scenario(optimizer=optimizer, compression={"replicas": METHODS[key]}, steps=2))
        memories[name] = set(states[0].memories)
        if name == "dion":
            ops = [op for wave in outcomes[-1].ops for op in wave if isinstance(op, CollectiveOp)]
            assert not [
                op for op in ops if op.axis == "replicas" and op.purpose == "grad_reduce" and "mat" in op.tensor
            ]
    # powersgd takes no vectors
    bias = set() if key == "powersgd" else {"replicas/bias"}
    assert memories["dion"] == bias
    assert memories["adamw"] == bias | {"replicas/matrices.0", "replicas/matrices.1"}


@pytest.mark.parametrize("key", METHODS)
def test_an_axis_of_size_one_changes_nothing(key: str) -> None:
    """So one scenario serves for any mesh."""
    mesh = {"replicas": 1, "shards": 3}
    section = {"compression": {"replicas": METHODS[key]}}
    _, outcomes, params = train(scenario(mesh=mesh, **section))
    _, plain_outcomes, plain = train(scenario(mesh=mesh))
    assert all(torch.equal(params[name], plain[name]) for name in plain)
    assert [o.ops for o in outcomes] == [o.ops for o in plain_outcomes]


def test_a_rank_beyond_the_sides_averages_as_usual() -> None:
    section = {"compression": {"replicas": {"name": "powersgd", "rank": 50}}}
    _, outcomes, params = train(scenario(**section))
    _, plain_outcomes, plain = train(scenario())
    assert all(torch.equal(params[name], plain[name]) for name in plain)
    assert [o.ops for o in outcomes] == [o.ops for o in plain_outcomes]


@pytest.mark.parametrize("key", METHODS)
def test_training_goes_downhill(key: str) -> None:
    signs = key == "majority_vote"
    optimizer = {"name": "sgd", "lr": 0.01 if signs else 0.1, "momentum": 0.0}
    if key == "demo":
        optimizer = {"name": "signum", "lr": 0.01, "momentum": 0.0}
    chosen = scenario(
        steps=30,
        optimizer=optimizer,
        mesh={"replicas": 3, "shards": 1},
        compression={"replicas": METHODS[key]},
        evaluation={"every": 1},
        engine={"name": "stacked"},
    )
    losses = [outcome.report["val_loss"] for outcome in train(chosen)[1]]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.slow
def test_ray_gives_the_bits_of_inline(cluster: None) -> None:
    section = {"replicas": {"name": "ef21", "codec": "int8"}, "shards": {"name": "error_feedback", "codec": "qsdp"}}
    inline, ray = (
        train(scenario(compression=section, steps=3, engine={"threads": 1, **engine}))
        for engine in ({"name": "inline"}, {"name": "ray", "actors": 2})
    )
    assert [o.ops for o in inline[1]] == [o.ops for o in ray[1]]
    assert all(torch.equal(x, ray[2][name]) for name, x in inline[2].items())


# -- diagnostics -----------------------------------------------------------------------------------------------------


def rows(tmp_path: Path, **changes: Any) -> list[dict[str, Any]]:
    folder = run(scenario(diagnostics={"every": 1}, **changes), tmp_path / "run", progress=False)
    found: list[dict[str, Any]] = pq.read_table(folder / "diagnostics.parquet").to_pylist()
    return found


@pytest.mark.parametrize(
    ("method", "part"),
    [("topk", "error"), ("sign", "error"), ("ef21", "estimate"), ("powersgd", "error"), ("majority_vote", "momentum")],
)
def test_memories_are_measured(tmp_path: Path, method: str, part: str) -> None:
    section = dict.fromkeys(("replicas", "shards"), METHODS[method])
    found = rows(tmp_path, compression=section)
    for axis in ("replicas", "shards"):
        columns = [f"{axis}_{part}_norm", f"{axis}_{part}_drift"]
        mine = [[row[name] for name in columns] for row in found if row.get(columns[0]) is not None]
        matrices = 2 if method == "powersgd" else 3
        assert len(mine) == 5 * matrices
        assert torch.tensor(mine).isfinite().all()
        # workers' noise and fixed differences part them, though votes may be unanimous, and what was sparse already
        # (on its way over shards) may be sent whole
        assert sum(norm > 0 for norm, _ in mine) > len(mine) / 2
        assert any(drift > 0 for _, drift in mine)


def test_errors_grow_where_little_is_sent(tmp_path: Path) -> None:
    section = {"replicas": {"name": "error_feedback", "codec": "topk(k=1)"}}
    found = rows(tmp_path, compression=section, optimizer={"name": "sgd", "lr": 1e-6})
    norms = [row["replicas_error_norm"] for row in found if row["matrix"] == "matrices.0"]
    # gradients hardly change: what is left adds up, step by step
    assert all(later > 1.1 * earlier for earlier, later in pairwise(norms))


def test_delta_decays_when_gradients_end() -> None:
    """What DeMo holds back fades by its decay, and by being sent."""
    gradient = random_gradient()
    method = DeMo(k=2, chunk=8, decay=0.9, values="fp64")
    fed = feed(method, DDP, lambda name, step, worker: gradient(name, step, worker) * (step < 3), steps=8, measure=True)
    for name in SHAPES:
        norms = [row["replicas_delta_norm"] for seen in fed.observations for row in seen if row["matrix"] == name]
        assert len(norms) == 8
        assert norms[1] > 0
        assert all(later < 0.9 * earlier for earlier, later in pairwise(norms[1:]) if earlier > 1e-12)

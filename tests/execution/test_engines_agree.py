"""One program, several engines: the same operations to the byte, and the same parameters within a stated tolerance.

``inline`` is the reference. ``stacked`` adds gradients in another order, so its parameters agree to rounding that the
steps amplify: 1e-9 in float64 and 2e-4 in float32 (absolute, of parameters of about 0.3) after four steps.
"""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from simdist.assembly import build_engine, build_job, build_pricer, build_task
from simdist.communication.ledger import Ledger
from simdist.communication.trace import CollectiveOp
from simdist.execution.lockstep import StepOutcome
from simdist.optimizers import optimizers
from simdist.results.recorder import params_sha256
from simdist.scenario import Scenario
from tests.execution.needs import NEEDS

TOLERANCE = {"float64": 1e-9, "float32": 2e-4}
STEPS = 4
TEACHER = {"name": "teacher", "rows": 9, "columns": 8, "matrices": 3, "heterogeneity": 0.1}
GPT = {"name": "byte_gpt", "width": 16, "depth": 1, "heads": 2, "context": 16, "batch": 2, "validation_batches": 3}


def scenario(optimizer: str, mesh: tuple[int, int], engine: dict[str, Any], **extra: Any) -> Scenario:
    return Scenario.from_dict(
        {
            "steps": STEPS,
            "dtype": "float64",
            "workload": TEACHER,
            "mesh": {"replicas": mesh[0], "shards": mesh[1]},
            "optimizer": {"name": optimizer, "lr": 0.02, **NEEDS.get(optimizer, {})},
            "wire": dict.fromkeys(("params", "grads", "factors", "statistics"), "fp64"),
            "evaluation": {"every": 2},
            "diagnostics": {"every": 2},
            "engine": {"threads": 1, **engine},
            **extra,
        }
    )


def train(chosen: Scenario) -> tuple[dict[str, Tensor], list[StepOutcome], str]:
    """Return the final parameters, what the steps did, and the ledger's hash."""
    job = build_job(chosen, build_task(chosen))
    ledger = Ledger(chosen.mesh.shape, build_pricer(chosen).plans)
    with build_engine(chosen, job) as engine:
        outcomes = list(engine.steps(1, chosen.steps))
        params = engine.parameters()
    for outcome in outcomes:
        count = sum(isinstance(op, CollectiveOp) for wave in outcome.ops for op in wave)
        ledger.add_step(outcome.step, outcome.ops, [(0.0, 0.0)] * count)
    return params, outcomes, ledger.sha256()


def assert_near(row: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    """Numbers agree to ten times the parameters' tolerance, all else exactly."""
    assert row.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, float):
            assert row[key] == pytest.approx(value, rel=10 * tolerance, abs=10 * tolerance), key
        else:
            assert row[key] == value


def assert_agree(one: Scenario, other: Scenario) -> None:
    tolerance = TOLERANCE[one.dtype]
    params, outcomes, ledger = train(one)
    other_params, other_outcomes, other_ledger = train(other)
    assert [outcome.ops for outcome in outcomes] == [outcome.ops for outcome in other_outcomes]
    assert ledger == other_ledger
    assert params.keys() == other_params.keys()
    for name, x in params.items():
        assert x.isfinite().all()
        assert float((other_params[name] - x).abs().max()) <= tolerance, name
    for mine, theirs in zip(outcomes, other_outcomes, strict=True):
        assert_near(theirs.report, mine.report, tolerance)
        assert len(theirs.observations) == len(mine.observations)
        for row, their_row in zip(mine.observations, theirs.observations, strict=True):
            assert_near(their_row, row, tolerance)


@pytest.mark.parametrize("mesh", [(1, 1), (1, 4), (4, 1), (2, 2), (2, 4), (3, 2)], ids=str)
@pytest.mark.parametrize("optimizer", optimizers.names())
def test_stacked_agrees_with_inline(optimizer: str, mesh: tuple[int, int]) -> None:
    assert_agree(scenario(optimizer, mesh, {"name": "inline"}), scenario(optimizer, mesh, {"name": "stacked"}))


@pytest.mark.parametrize("optimizer", optimizers.names())
def test_stacked_agrees_on_a_real_model_in_single_precision(optimizer: str) -> None:
    changes: dict[str, Any] = {"workload": GPT, "dtype": "float32", "wire": {}}
    one, other = ({"name": name} for name in ("inline", "stacked"))
    assert_agree(scenario(optimizer, (2, 2), one, **changes), scenario(optimizer, (2, 2), other, **changes))


@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("optimizer", ["adamw", "orth_dion"])
def test_the_chunk_of_a_stacked_engine_does_not_show(optimizer: str, chunk: int) -> None:
    stacked = {"name": "stacked", "chunk": chunk}
    assert_agree(scenario(optimizer, (4, 1), {"name": "inline"}), scenario(optimizer, (4, 1), stacked))


@pytest.mark.parametrize("name", ["inline", "stacked"])
def test_a_seed_fixes_every_bit(name: str) -> None:
    def hashes(seed: int) -> tuple[str, str]:
        params, _, ledger = train(scenario("orth_dion", (2, 2), {"name": name}, seed=seed, dtype="float32", wire={}))
        return params_sha256(params), ledger

    one, again, other = hashes(3), hashes(3), hashes(4)
    assert one == again
    assert one[0] != other[0]
    assert one[1] == other[1], "what travels does not depend on the seed"


@pytest.mark.parametrize("optimizer", optimizers.names())
def test_training_on_any_mesh_goes_downhill(optimizer: str) -> None:
    """The agreement above is not that of two engines that do nothing."""
    _, outcomes, _ = train(scenario(optimizer, (2, 2), {"name": "inline"}, steps=8))
    losses = [outcome.report["val_loss"] for outcome in outcomes]
    assert losses[0] is None
    assert losses[7] is not None
    assert losses[1] is not None
    assert losses[7] < losses[1]

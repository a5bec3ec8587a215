"""Rules that hand out other parameters than they train: validation and final parameters are those handed out.

The judge is the torch class alive, ``train()``, ``step()``, ``eval()``, on gradients computed one after the other.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from simdist.assembly import build_engine, build_hosts, build_job, build_task, build_timeline
from simdist.communication.ledger import Ledger, one_plan
from simdist.communication.plans import Ring
from simdist.execution.live import LiveRun
from simdist.scenario import Scenario

STEPS = 5
FREE = {"name": "pytorch_optimizer:ScheduleFreeAdamW", "lr": 0.1, "betas": [0.8, 0.9]}
SPLUS = {"name": "pytorch_optimizer:SPlus", "lr": 0.5, "ema_rate": 0.9, "inverse_steps": 2, "weight_decay": 0.0}
RUNS: list[dict[str, Any]] = [
    {"mesh": {"replicas": 2, "shards": 2}, "engine": {"name": "inline"}},
    {"mesh": {"replicas": 2, "shards": 2}, "engine": {"name": "stacked"}},
    {"mesh": {"shards": 4}, "engine": {"name": "stacked"}},
    {"mesh": {"replicas": 2}, "schedule": "async_server"},
]
NAMES = ["inline 2x2", "stacked 2x2", "stacked 1x4", "async_server"]


def scenario(optimizer: Any, **changes: Any) -> Scenario:
    return Scenario.from_dict(
        {
            "steps": STEPS,
            "dtype": "float64",
            # square: SPlus takes eigenvectors of Gram matrices, which rounding decides where these lack rank
            "workload": {"name": "teacher", "rows": 6, "columns": 6, "matrices": 2, "batch": 2},
            "optimizer": optimizer,
            "wire": dict.fromkeys(("params", "grads", "factors", "statistics"), "fp64"),
            "lr_schedule": {"warmup": 3},
            **changes,
        }
    )


def trained(chosen: Scenario) -> tuple[dict[str, Tensor], list[float | None], list[float]]:
    """Run a scenario; return the final parameters, and the validation and training loss of each step."""
    job = build_job(chosen, build_task(chosen))
    if chosen.schedule.name == "async_server":
        rows: list[dict[str, Any]] = []
        with build_hosts(chosen, job) as hosts:
            live = LiveRun(
                hosts, build_timeline(chosen), Ledger(chosen.mesh.shape, one_plan(chosen.mesh.shape, Ring()))
            )
            live.run(range(chosen.workers), lambda _, noted: rows.extend(note.row for note in noted))
        assert live.params is not None
        reports = [row for row in rows if "train_loss" in row]
        return live.params, [row["val_loss"] for row in reports], [row["train_loss"] for row in reports]
    with build_engine(chosen, job) as engine:
        reports = [outcome.report for outcome in engine.steps(1, chosen.steps)]
        return engine.parameters(), [r["val_loss"] for r in reports], [r["train_loss"] for r in reports]


def alive(chosen: Scenario) -> tuple[dict[str, Tensor], list[float]]:
    """Return the final parameters in eval mode, and each step's validation loss there."""
    job = build_job(chosen, build_task(chosen))
    task, rule = job.task, job.rule
    # the server of the asynchronous run does not train; with one worker that does, no gradient is stale
    workers = [1] if chosen.schedule.name == "async_server" else range(chosen.workers)
    params = {name: torch.nn.Parameter(x.clone()) for name, x in task.initial().items()}
    optimizers: list[Any] = [rule.make(p, decay=True) for p in params.values()]  # type: ignore[attr-defined]
    losses = []
    for step in range(1, chosen.steps + 1):
        for optimizer in optimizers:
            optimizer.train()
            optimizer.zero_grad()
            optimizer.param_groups[0]["lr"] = job.lr(rule, step)
        (sum(task.loss(dict(params), task.batch(w, step)) for w in workers) / len(workers)).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.eval()
        (batch,) = task.validation
        losses.append(float(task.loss({name: p.detach() for name, p in params.items()}, batch)))
    return {name: p.detach() for name, p in params.items()}, losses


@pytest.mark.parametrize("optimizer", [FREE, SPLUS], ids=lambda each: each["name"])
@pytest.mark.parametrize("changes", RUNS, ids=NAMES)
def test_the_model_is_judged_where_the_class_says(optimizer: dict[str, Any], changes: dict[str, Any]) -> None:
    chosen = scenario(optimizer, evaluation={"every": 1}, **changes)
    found, losses, _ = trained(chosen)
    expected, wanted = alive(chosen)
    assert found.keys() == expected.keys()
    for name, x in found.items():
        torch.testing.assert_close(x, expected[name], rtol=0, atol=1e-10)
    assert [loss if loss is None else float(loss) for loss in losses] == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize("optimizer", [FREE, SPLUS], ids=lambda each: each["name"])
@pytest.mark.parametrize("changes", RUNS, ids=NAMES)
def test_validation_does_not_disturb_training(optimizer: dict[str, Any], changes: dict[str, Any]) -> None:
    watched, unwatched = (trained(scenario(optimizer, evaluation={"every": n}, **changes)) for n in (1, 0))
    assert all(loss is not None for loss in watched[1])
    assert unwatched[1][:-1] == [None] * (STEPS - 1)
    assert watched[1][-1] == unwatched[1][-1]
    assert watched[2] == unwatched[2]
    assert all(torch.equal(x, unwatched[0][name]) for name, x in watched[0].items())

"""The ledger books what PyTorch's own FSDP2, HSDP and DDP send in a step of the same module, and trains the same.

Most cases run PyTorch in this process, rank 0 of a world that delivers nothing: its code decides what to send from
shapes alone. Real gloo processes show that this is what they really send.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.tensor.debug import CommDebugMode

from simdist.assembly import build_engine, build_job, build_pricer, build_task
from simdist.communication.ledger import Ledger
from simdist.communication.trace import CollectiveOp
from simdist.scenario import Scenario
from tests.parallelism import real_fsdp
from tests.parallelism.real_fsdp import OPERATORS, Seen, Trained, fake_processes, train

FILE = Path(__file__).with_name("sharded_model.py")
ROOT = Path(__file__).parents[2]
FP32 = {"params": "fp32", "grads": "fp32"}
BF16 = {"params": "bf16", "grads": "bf16"}

# PyTorch warns that the gradients of a module's inputs (data) are not computed, and that its outputs must not be
# changed in place (nobody does)
pytestmark = [
    pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning"),
    pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view tensor:UserWarning"),
]


@dataclass(frozen=True)
class Cut:
    """A module and the submodules of it that are units (None: simdist's default)."""

    model: str
    units: tuple[str, ...] | None = None


CUTS = {
    "blocks": Cut("Net"),
    "nested": Cut("Net", ("encoder", "encoder.blocks.*", "head")),
    "one unit": Cut("Net", ()),
    "empty root": Cut("make_sequential"),
}
#: parameters have 5, 6, 7 and 10 rows, so that of 8 and of 12 shards some or most are empty
MESHES = [(1, 2), (1, 3), (1, 4), (1, 8), (1, 12), (2, 2), (2, 8), (4, 1)]


def scenario(
    cut: Cut, mesh: tuple[int, int], wire: dict[str, str] = FP32, reshard: bool | None = None, steps: int = 2
) -> Scenario:
    return Scenario.from_dict(
        {
            "steps": steps,
            "workload": {
                "name": "module",
                "model": f"{FILE}:{cut.model}",
                "loss": f"{FILE}:loss",
                "dataset": f"{FILE}:make_data",
                "batch": 4,
                "units": cut.units,
            },
            "mesh": {"replicas": mesh[0], "shards": mesh[1], "reshard_after_forward": reshard},
            "optimizer": {"name": "adamw", "lr": 0.01},
            "wire": wire,
        }
    )


def simulated(chosen: Scenario) -> Trained:
    """Train with simdist: what its ledger books as a collective, and the parameters at the end."""
    steps = []
    with build_engine(chosen, build_job(chosen, build_task(chosen))) as engine:
        for outcome in engine.steps(1, chosen.steps):
            count = sum(isinstance(op, CollectiveOp) for wave in outcome.ops for op in wave)
            ledger = Ledger(chosen.mesh.shape, build_pricer(chosen).plans)
            ledger.add_step(1, outcome.ops, [(0.0, 0.0)] * count)
            table = ledger.columns()
            rows = zip(table["op"], table["group_size"], table["payload_bytes"], strict=True)
            steps.append([Seen(*row) for row in rows])  # type: ignore[arg-type] # columns are objects
        return Trained(steps, engine.parameters())


def fake(chosen: Scenario, **how: Any) -> list[Seen]:
    """Return what FSDP2 sends in a step, once steps no longer differ."""
    with fake_processes(chosen.workers):
        trained = train(chosen, **how)
    assert trained.steps[-1] == trained.steps[-2]
    return trained.steps[-1]


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_comm_debug_mode_counts_the_same(mesh: tuple[int, int]) -> None:
    """PyTorch's own counter of collectives agrees with what is noted here."""
    chosen = scenario(CUTS["blocks"], mesh, steps=1)
    counting = CommDebugMode()
    with fake_processes(chosen.workers):
        trained = train(chosen, watched=counting)
    counts = {OPERATORS[op.__name__][0]: count for op, count in counting.get_comm_counts().items()}
    assert counts == Counter(seen.op for step in trained.steps for seen in step)


def assert_same(chosen: Scenario, **how: Any) -> None:
    """The same collectives, as often; when in the step is a matter of overlap (FSDP2 asks for units in advance)."""
    booked = simulated(chosen).steps[-1]
    assert booked
    assert Counter(booked) == Counter(fake(chosen, **how))


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("cut", CUTS)
def test_the_ledger_is_what_fsdp2_sends(cut: str, mesh: tuple[int, int]) -> None:
    assert_same(scenario(CUTS[cut], mesh))


@pytest.mark.parametrize("reshard", [True, False])
@pytest.mark.parametrize("cut", CUTS)
def test_gathering_again_is_booked_as_fsdp2_does_it(cut: str, reshard: bool) -> None:
    assert_same(scenario(CUTS[cut], (1, 4), reshard=reshard))


@pytest.mark.parametrize("wire", [{"params": "bf16", "grads": "fp32"}, BF16], ids=lambda wire: "-".join(wire.values()))
def test_wire_codecs_are_a_mixed_precision_policy(wire: dict[str, str]) -> None:
    assert_same(scenario(CUTS["blocks"], (2, 2), wire))


def test_frozen_parameters_are_ignored_ones() -> None:
    """What is not trained is whole on every worker, like FSDP2's ``ignored_params``; else FSDP2 gathers it too."""
    chosen = scenario(Cut("make_frozen"), (1, 4))
    assert_same(chosen, ignore_frozen=True)
    more = Counter(fake(chosen)) - Counter(fake(chosen, ignore_frozen=True))
    assert {seen.op for seen in more} == {"all_gather"}


@pytest.mark.parametrize(
    ("model", "unit_gathers"),
    [
        # FSDP2 gathers a unit for every call of it, forward and backward; the ledger books one of each
        ("Twice", {"fsdp2": 2 + 2, "ledger": 2}),
        # FSDP2 never gathers or reduces a unit that is not called; the ledger books it like the others
        ("Unused", {"fsdp2": 0, "ledger": 2}),
    ],
)
def test_where_fsdp2_does_otherwise(model: str, unit_gathers: dict[str, int]) -> None:
    """The ledger takes every unit for one that is called once."""
    chosen = scenario(Cut(model), (1, 4))
    real, booked = Counter(fake(chosen)), Counter(simulated(chosen).steps[-1])
    (block,) = {seen for seen in real if seen.op == "all_gather" and real[seen] > 1}
    blocks = 3 + (model == "Unused")
    others = 2 * (blocks - 1)
    assert real[block] == others + unit_gathers["fsdp2"]
    assert booked[block] == others + unit_gathers["ledger"]


@dataclass(frozen=True)
class Job:
    """One training run on real processes."""

    mesh: tuple[int, int]
    ddp: bool = False

    @property
    def scenario(self) -> Scenario:
        # DDP settles down in its third step
        return scenario(CUTS["blocks"], self.mesh, steps=3)


JOBS = {"fsdp": Job((1, 4)), "hsdp": Job((2, 2)), "hsdp of one shard": Job((4, 1)), "ddp": Job((4, 1), ddp=True)}
WORLD = 4


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Trained]]:
    """What four gloo processes saw and ended with, by job and rank."""
    folder = tmp_path_factory.mktemp("real")
    jobs = [(job.scenario.to_dict(), job.ddp) for job in JOBS.values()]
    (folder / "jobs.json").write_text(json.dumps(jobs), "utf-8")
    command = [sys.executable, "-W", "ignore", "-m", real_fsdp.__name__, str(folder), str(WORLD)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240, cwd=ROOT)
    assert done.returncode == 0, done.stdout
    by_rank = [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(WORLD)]
    return {
        name: [Trained([[Seen(*one) for one in step] for step in steps], params) for steps, params in found]
        for name, found in zip(JOBS, zip(*by_rank, strict=True), strict=True)
    }


@pytest.mark.parametrize("job", [name for name, job in JOBS.items() if not job.ddp])
def test_real_processes_send_the_same(job: str, real: dict[str, list[Trained]]) -> None:
    expected = fake(JOBS[job].scenario)
    for trained in real[job]:
        assert trained.steps == [expected] * JOBS[job].scenario.steps


def test_ddp_reduces_the_bytes_of_all_units(real: dict[str, list[Trained]]) -> None:
    """DDP cuts its buckets by size where the ledger has one payload per unit; together they hold the same."""
    booked = simulated(JOBS["ddp"].scenario).steps[-1]
    assert {seen.op for seen in booked} == {"all_reduce"}
    for trained in real["ddp"]:
        # in its second step DDP tells all ranks in which order gradients came, and fills its buckets anew
        for step in (trained.steps[0], trained.steps[-1]):
            assert {(seen.op, seen.group_size) for seen in step} == {("all_reduce", WORLD)}
            assert sum(seen.payload_bytes for seen in step) == sum(seen.payload_bytes for seen in booked)


@pytest.mark.parametrize("job", JOBS)
def test_real_processes_train_the_same(job: str, real: dict[str, list[Trained]]) -> None:
    chosen = JOBS[job].scenario
    initial, ours = build_task(chosen).initial(), simulated(chosen).params
    for trained in real[job]:
        assert trained.params.keys() == ours.keys()
        for name, value in trained.params.items():
            moved = (value - initial[name]).abs().max()
            assert moved > 1e-3
            torch.testing.assert_close(value, ours[name], rtol=0, atol=1e-3 * float(moved))

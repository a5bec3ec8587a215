"""What simdist says of the measured training steps: the same model, mesh, method and links, in simulated seconds.

Nothing is fitted to the steps. Links are set as :mod:`analysis.fidelity.real_links.predict` sets them, their one number
calibrated on point-to-point messages; computing is the profile that was measured without a network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from analysis.fidelity.real_links.cases import DATA, read
from analysis.fidelity.real_links.links import frames_per_piece
from analysis.fidelity.real_links.predict import FRAME_BYTES, HEADER_BYTES, MTU, message_overhead
from analysis.fidelity.training.measure import MEMBERS, Measured, profile_file
from analysis.fidelity.training.methods import LR, ONE_BUCKET, RANK, START
from analysis.fidelity.training.model import BATCH
from simdist.assembly import build_engine, build_job, build_pricer, build_task
from simdist.communication.ledger import Ledger
from simdist.communication.trace import StepOps
from simdist.scenario import Scenario
from simdist.workloads.workload import Task

MODEL = Path(__file__).with_name("model.py")

#: how a scenario says each method. On CPUs FSDP2 waits for every collective: torch has no streams there
SETTINGS: dict[str, dict[str, Any]] = {
    "ddp": {"overlap": {"policy": "ddp"}},
    "powersgd": {
        "overlap": {"policy": "ddp", "bucket": ONE_BUCKET * 2**20, "first_bucket": ONE_BUCKET * 2**20},
        "compression": {"replicas": {"name": "powersgd", "rank": RANK, "start": START}},
    },
    "fsdp": {"overlap": {"policy": "none"}},
}


@dataclass(frozen=True)
class Prediction:
    """A measured case and what simdist says of it.

    Attributes:
        seconds: simulated seconds of a step.
        compute_seconds: computing of one worker in them.
        largest_payload: bytes of the largest collective.
        frame_bytes: what a host puts on its link in a step: full packets with their headers, and acknowledgements.
    """

    case: Measured
    seconds: float
    compute_seconds: float
    largest_payload: int
    frame_bytes: float

    @property
    def error(self) -> float:
        """Signed relative error of the seconds."""
        return self.seconds / self.case.seconds - 1

    @property
    def byte_error(self) -> float:
        """Signed relative error of the bytes."""
        return self.frame_bytes / self.case.tx_bytes - 1


def predict(case: Measured) -> Prediction:
    """Price a step of a case."""
    chosen = scenario(case.method, case.members, network(case.rate, case.members))
    mesh, step = chosen.mesh.shape, recorded(case.method, case.members)
    pricer = build_pricer(chosen)
    timing = pricer.price(step)
    sent = Ledger(mesh, pricer.plans).step_bytes(step) / case.members
    segment = MTU - HEADER_BYTES
    return Prediction(
        case,
        timing.duration,
        timing.compute_seconds,
        max(task.payload_bytes for task in timing.graph.tasks),
        sent * (MTU + FRAME_BYTES + acknowledgements(case.rate, case.members)) / segment,
    )


def scenario(method: str, members: int, links: Mapping[str, Any]) -> Scenario:
    """Return the simulated twin of a case on links of given settings."""
    sharded = method == "fsdp"
    return Scenario.from_dict(
        {
            "steps": START + 1,
            "workload": {
                "name": "module",
                "model": f"{MODEL}:ByteGPT",
                "loss": f"{MODEL}:loss",
                "dataset": f"{MODEL}:make_data",
                "batch": BATCH,
            },
            "mesh": {"replicas": 1 if sharded else members, "shards": members if sharded else 1},
            "optimizer": {"name": "adamw", "lr": LR},
            "network": links,
            "compute": {"profile": str(profile_file(method, members))},
            **SETTINGS[method],
        }
    )


def network(rate: float, members: int) -> dict[str, Any]:
    """Return the settings of the throttled links."""
    return {
        "topology": "star",
        "bandwidth": rate,
        "latency": 0.0,
        "message_overhead": calibrated(),
        "mtu": MTU,
        "header_bytes": HEADER_BYTES,
        "frame_bytes": FRAME_BYTES + round(acknowledgements(rate, members)),
        "collectives": "gloo",
    }


def acknowledgements(rate: float, members: int) -> float:
    """Return the bytes of acknowledgements that a host's link carries per segment that the host sends.

    In a ring of three hosts or more a host acknowledges to one neighbour what it receives, as much as it sends to the
    other; between two hosts acknowledgements ride on what goes the other way.
    """
    if members == 2:
        return 0.0
    return (HEADER_BYTES + FRAME_BYTES) / max(2, frames_per_piece(rate, members))


@cache
def calibrated() -> float:
    """Return the seconds that a message takes besides its bytes, from a measured point-to-point message."""
    return message_overhead(read(DATA / "measured.csv"))


@cache
def task() -> Task:
    """Return the model with its data as simdist takes them."""
    return build_task(scenario("ddp", MEMBERS[0], {}))


@cache
def recorded(method: str, members: int) -> StepOps:
    """Train some simulated steps and return what the last one did; that does not depend on the links."""
    chosen = scenario(method, members, {})
    with build_engine(chosen, build_job(chosen, task())) as engine:
        *_, last = engine.steps(1, chosen.steps)
    return last.ops

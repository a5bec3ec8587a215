"""Driving a lock-step run: the engine trains, the clock prices, the ledger books, the recorder notes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simdist.assembly import build_engine
from simdist.execution.clock import LockstepClock, collective_times
from simdist.results.program_file import ProgramFile
from simdist.tracing import Drawing

if TYPE_CHECKING:
    import torch

    from simdist.running import Session


def run_lockstep(session: Session, ray_address: str | None) -> tuple[dict[str, torch.Tensor] | None, int]:
    """Run every step of a lock-step scenario and return the final parameters and the peak memory in bytes."""
    scenario = session.scenario
    clock = LockstepClock(session.pricer)
    program = ProgramFile()
    drawing = Drawing(session.trace, session.pricer)
    try:
        with build_engine(scenario, session.job, ray_address) as engine:
            for outcome in engine.steps(1, scenario.steps):
                times = clock.advance(outcome.ops)
                program.add(outcome.ops)
                session.ledger.add_step(outcome.step, outcome.ops, collective_times(outcome.ops, times))
                drawing.add(outcome.step, outcome.ops, times)
                session.recorder.diagnostics(outcome.step, outcome.observations)
                session.add_row(
                    session.ledger.step_bytes(outcome.ops),
                    {
                        "step": outcome.step,
                        **outcome.report,
                        "simulated_seconds": times.simulated_seconds,
                        "compute_seconds": times.compute_seconds,
                        "exposed_comm_seconds": times.exposed_comm_seconds,
                        "hidden_comm_seconds": times.hidden_comm_seconds,
                    },
                )
            return engine.parameters(), engine.peak_rss_bytes()
    finally:
        program.write(session.recorder.folder / "program.json")

"""Driving a lock-step run: the engine trains, the clock prices, the ledger books, the recorder notes.

What is lost on the way (an actor, a node) costs the steps since the last checkpoint, no more: the run starts again from
there with fresh actors, to the same bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from simdist.assembly import build_engine
from simdist.checkpointing import Saver
from simdist.communication.trace import StepOps
from simdist.errors import SimdistError
from simdist.execution.clock import LockstepClock, StepTimes, collective_times
from simdist.interrupting import Interruption
from simdist.recovering import recovering
from simdist.results.program_file import ProgramFile
from simdist.tracing import Drawing

if TYPE_CHECKING:
    import torch

    from simdist.execution.engine import Engine
    from simdist.execution.lockstep import StepOutcome
    from simdist.results.checkpoints import Recorded
    from simdist.running import Session


class LockstepRecord:
    """What a lock-step run has done so far: steps, bytes and simulated seconds, from the first step on.

    Attributes:
        step: the last one that is recorded.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        session.clear()
        self.clock = LockstepClock(session.pricer)
        self.program = ProgramFile()
        self._drawing = Drawing(session.trace, session.pricer)
        self.step = 0

    def add(self, outcome: StepOutcome) -> None:
        """Record what an engine did in the next step."""
        times = self._book(outcome.step, outcome.ops)
        self.session.recorder.diagnostics(outcome.step, outcome.observations)
        self.session.add_row(
            self.session.ledger.step_bytes(outcome.ops),
            {
                "step": outcome.step,
                **outcome.report,
                "simulated_seconds": times.simulated_seconds,
                "compute_seconds": times.compute_seconds,
                "exposed_comm_seconds": times.exposed_comm_seconds,
                "hidden_comm_seconds": times.hidden_comm_seconds,
            },
        )

    def refill(self, recorded: Recorded) -> None:
        """Record anew what a run had recorded: ledger, times and trace follow from what was asked for."""
        for row, ops in zip(recorded.steps, recorded.program.ops(), strict=True):
            self._book(row["step"], ops)
        self.session.refill(recorded.steps, recorded.diagnostics)

    def _book(self, step: int, ops: StepOps) -> StepTimes:
        times = self.clock.advance(ops)
        self.program.add(ops)
        self.session.ledger.add_step(step, ops, collective_times(ops, times))
        self._drawing.add(step, ops, times)
        self.step = step
        return times


def run_lockstep(session: Session, ray_address: str | None) -> tuple[dict[str, torch.Tensor] | None, int]:
    """Run every step of a lock-step scenario and return the final parameters and the peak memory in bytes.

    It goes on from the latest good checkpoint in the run folder, if there is any.

    Raises:
        WorkersLost: when that happened more often than ``engine.retries``.
        KeyboardInterrupt: when it was asked to stop, with all that was done saved.
    """
    folder, scenario = session.recorder.folder, session.scenario
    saver = Saver(folder, scenario, session.job.task.data_hash, session.tell, session.publish)
    session.saver = saver
    interruption = Interruption(session.tell)

    def attempt() -> tuple[dict[str, torch.Tensor] | None, int]:
        record = LockstepRecord(session)
        try:
            return _train(session, record, saver, interruption, ray_address)
        finally:
            record.program.write(folder / "program.json")

    return recovering(session, attempt, "the last checkpoint")


def _train(
    session: Session, record: LockstepRecord, saver: Saver, interruption: Interruption, ray_address: str | None
) -> tuple[dict[str, torch.Tensor] | None, int]:
    """Run all steps after the last checkpoint."""
    last = session.scenario.steps
    checkpoint = saver.latest()
    # the cluster may have become too small for as many actors; the states may need as many (stacked cohorts do)
    squeeze = bool(session.extra.get("recoveries"))
    with build_engine(session.scenario, session.job, ray_address, squeeze) as engine:
        if checkpoint is not None:
            saver.restore(checkpoint, engine, record)
            session.tell(f"going on after step {record.step}, from {checkpoint.folder.name}")
        with interruption.awaited():
            try:
                while record.step < last:
                    for outcome in engine.steps(
                        record.step + 1,
                        last,
                        lambda step: interruption.wanted is None and not saver.due(step - 1),
                    ):
                        record.add(outcome)
                    if saver.due(record.step) or (interruption.wanted and 0 < record.step != saver.step):
                        saver.save(engine, record)
                    if interruption.wanted and record.step < last:
                        raise KeyboardInterrupt
            except SimdistError:
                raise
            except BaseException:
                _rescue(engine, record, saver)
                raise
        return engine.parameters(), engine.peak_rss_bytes()


def _rescue(engine: Engine, record: LockstepRecord, saver: Saver) -> None:
    """Save the states of before a step that failed, or was cut short, where the engine still has them."""
    if 0 < record.step != saver.step and engine.intact_after == record.step:
        saver.save(engine, record)

"""When a lock-step run is saved, and what it goes on from."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from simdist.errors import InputError, ProgramError, RunError
from simdist.execution.saved import Part
from simdist.results.checkpoints import Checkpoint, Checkpoints, Recorded
from simdist.results.disk import is_full

if TYPE_CHECKING:
    from pathlib import Path

    from simdist.execution.engine import Engine
    from simdist.lockstep_run import LockstepRecord
    from simdist.scenario import Scenario

#: sections that change nothing of what a run computes, sends, or takes in simulated time
FREE = ("engine", "checkpoint")


def identity_of(scenario: Scenario, data_hash: str) -> str:
    """Return the hash of all that decides what a run is, step by step."""
    told = {key: value for key, value in scenario.to_dict().items() if key not in FREE}
    text = json.dumps({"scenario": told, "data": data_hash}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


class Saver:
    """Writes the checkpoints of one run, and finds the one to go on from.

    Args:
        run: the run folder.
        tell: takes a line of news for the user.
        saved: called after each checkpoint that was written.
    """

    def __init__(
        self,
        run: Path,
        scenario: Scenario,
        data_hash: str,
        tell: Callable[[str], None],
        saved: Callable[[], None],
    ) -> None:
        self._settings = scenario.checkpoint
        self._steps = scenario.steps
        self._checkpoints = Checkpoints(run, identity_of(scenario, data_hash), scenario.checkpoint.keep)
        self._tell = tell
        self._saved = saved
        #: the step of the last checkpoint (0: none yet)
        self.step = 0
        self._due_at = self._next()
        self._possible = True

    def latest(self) -> Checkpoint | None:
        """Return the checkpoint to go on from; bad ones are refused with a message."""
        found = self._checkpoints.latest(self._tell)
        self.step = found.step if found else 0
        return found

    def due(self, step: int) -> bool:
        """Whether the states after ``step`` are to be saved."""
        if step in (0, self.step) or not self._possible:
            return False
        if self._settings.every is not None and step % self._settings.every == 0:
            return True
        # at the end by its time alone there is nothing left to lose
        return time.monotonic() >= self._due_at and step < self._steps

    def save(self, engine: Engine, record: LockstepRecord) -> None:
        """Save the states after the last step.

        Raises:
            RunError: when the disk is full, or the states of a user's program are no plain data although
                ``checkpoint.every`` asks for them.
        """
        step, seconds = record.step, record.session.wall_seconds
        recorder = record.session.recorder
        recorded = Recorded(recorder.steps, recorder.diagnostic_rows, record.program)
        try:
            self._checkpoints.write(step, record.clock.state, seconds, engine.save(), recorded)
        except ProgramError as error:
            if self._settings.every is not None:
                raise ProgramError(f"the state of step {step} cannot be saved: {error}") from error
            self._possible = False
            self._tell(f"this run is never saved, as its state cannot be: {error}")
            return
        except OSError as error:
            if is_full(error):
                raise RunError(f"the disk is full ({error}): the checkpoint of step {step} was not written") from error
            raise RunError(f"the checkpoint of step {step} could not be written: {error}") from error
        self.step, self._due_at = step, self._next()
        self._saved()

    def _next(self) -> float:
        seconds = self._settings.every_seconds
        return float("inf") if seconds is None else time.monotonic() + seconds

    @staticmethod
    def restore(checkpoint: Checkpoint, engine: Engine, record: LockstepRecord) -> None:
        """Bring a fresh engine and a fresh record to where a checkpoint was written.

        Raises:
            InputError: when times come out otherwise than they were, or the engine cannot take the states.
        """
        record.refill(checkpoint.recorded)
        if record.clock.state != checkpoint.clock:
            raise InputError(
                f"checkpoint {checkpoint.folder}: the {checkpoint.step} steps so far take other times than when it was "
                "written; expected the same version of simdist (see environment.json)"
            )
        engine.restore([Part(workers, data) for workers, data in checkpoint.blocks], checkpoint.step)

"""What an engine runs: lock-step programs, step by step, or irregular programs, one coroutine from start to end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from simdist.program.state import tensors_of
from simdist.program.worker import Worker

Report = dict[str, Any]


class LockstepProgram(ABC):
    """A program whose workers all make the same requests in the same order, whatever the time.

    The engine calls :meth:`step` once per step and worker, so the state between steps is an explicit value: that is
    where checkpoints fall. Values must not depend on simulated time, so recorded steps can be priced again later.
    """

    @abstractmethod
    async def start(self, worker: Worker) -> Any:
        """Return the worker's state before the first step; nothing that is booked may travel here."""

    @abstractmethod
    async def step(self, worker: Worker, state: Any, step: int) -> tuple[Any, Report]:
        """Run step ``step`` (from 1) and return the new state and the numbers to report (equal on all workers)."""

    @abstractmethod
    async def parameters(self, worker: Worker, state: Any) -> dict[str, Tensor]:
        """Return the full parameters of the model as this state has them, by measurements only."""

    def held(self, worker: Worker, state: Any) -> dict[str, float]:
        """Return the bytes that one worker holds between steps, by what they are, for plans.

        Here all of its state under one name. ``state`` is a single worker's, not a cohort's.
        """
        return {"state": float(sum(worker.ops.own_bytes(x) for x in tensors_of(state)))}


class IrregularProgram(ABC):
    """A program whose workers talk at different times; it runs on the event-driven engine."""

    @abstractmethod
    async def main(self, worker: Worker) -> dict[str, Tensor] | None:
        """Run one worker from start to end; the worker that holds the final parameters returns them.

        Rows for ``steps.parquet`` are noted by ``worker.observe(step=..., train_loss=..., ...)``.
        """

"""Engines for lock-step programs: who holds the workers, and how a step of all of them is run."""

from __future__ import annotations

import resource
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from typing_extensions import Self

from simdist.execution.exchange import Alone
from simdist.execution.inline import inline_worker
from simdist.execution.lockstep import BlockResolver, Hold, LockstepBlock, Resolver, StepOutcome
from simdist.execution.saved import Part
from simdist.execution.stacked import StackedResolver, cohort
from simdist.execution.wiring import Wiring
from simdist.program import MeshShape, Worker
from simdist.program.program import LockstepProgram

#: whether a step may be begun
MayBegin = Callable[[int], bool]


class Holder(ABC):
    """Holds workers, here or in other processes. Use as a context manager; leaving it frees whatever it holds."""

    @abstractmethod
    def start(self) -> None:
        """Make the workers and their initial states.

        Raises:
            InputError: when their processes cannot be had (no answer from a Ray address, no GPU, ...).
        """

    @abstractmethod
    def peak_rss_bytes(self) -> int:
        """Return the largest resident memory so far, summed over the processes."""

    @abstractmethod
    def close(self) -> None:
        """Free processes and connections."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Engine(Holder):
    """Runs the workers of one lock-step program."""

    @abstractmethod
    def steps(self, first: int, last: int, may_begin: MayBegin = lambda step: True) -> Iterator[StepOutcome]:
        """Run steps ``first`` to ``last`` and yield what each did.

        Args:
            may_begin: asked before each step; on the first no the steps under way are finished, and that is all.

        Raises:
            WorkersLost: when a worker's process is gone.
        """

    @abstractmethod
    def save(self) -> Iterator[Part]:
        """Yield the states of all workers, block by block, as they are after the last step that was run.

        Raises:
            ProgramError: for a program whose state is no plain data (see :mod:`simdist.program.state`).
        """

    @abstractmethod
    def restore(self, parts: Sequence[Part], step: int) -> None:
        """Go on from what :meth:`save` gave after ``step``; only between :meth:`start` and the first step.

        Raises:
            InputError: when that was another program, or another kind of engine.
        """

    @property
    @abstractmethod
    def intact_after(self) -> int | None:
        """The step whose states :meth:`save` would give although a later one failed; None where they are gone."""

    @abstractmethod
    def parameters(self) -> dict[str, Tensor]:
        """Return the full parameters as they are now."""


class LocalEngine(Engine):
    """All workers in this process: one coroutine each (``inline``) or one for the whole cohort (``stacked``)."""

    def __init__(self, program: LockstepProgram, workers: list[Worker], resolver: Resolver, hold: Hold | None) -> None:
        self._block = LockstepBlock(program, workers, resolver, hold)
        self._all = range(workers[0].count)

    @classmethod
    def inline(
        cls, program: LockstepProgram, mesh: MeshShape, wiring: Wiring, seed: int, hold: Hold | None = None
    ) -> LocalEngine:
        """One coroutine per worker: the reference."""
        workers = [inline_worker(mesh, index, seed) for index in range(mesh.workers)]
        return cls(program, workers, BlockResolver(mesh, wiring, Alone(mesh.workers)), hold)

    @classmethod
    def stacked(
        cls,
        program: LockstepProgram,
        mesh: MeshShape,
        wiring: Wiring,
        seed: int,
        hold: Hold | None = None,
        chunk: int | None = None,
    ) -> LocalEngine:
        """One coroutine for all workers; ``chunk`` bounds how many workers' gradients exist at a time."""
        return cls(program, [cohort(mesh, seed, chunk)], StackedResolver(mesh, wiring), hold)

    def start(self) -> None:
        self._block.start()

    def steps(self, first: int, last: int, may_begin: MayBegin = lambda step: True) -> Iterator[StepOutcome]:
        for step in range(first, last + 1):
            if not may_begin(step):
                return
            yield self._block.step(step)

    def save(self) -> Iterator[Part]:
        yield Part(self._all, self._block.save(self._all))

    def restore(self, parts: Sequence[Part], step: int) -> None:
        self._block.restore([part.data for part in parts], self._all, step)

    @property
    def intact_after(self) -> int | None:
        return self._block.completed

    def parameters(self) -> dict[str, Tensor]:
        return self._block.parameters()

    def peak_rss_bytes(self) -> int:
        return peak_rss_bytes()

    def close(self) -> None:
        """Nothing is held outside this process."""

    @property
    def states(self) -> list[object]:
        """The states between steps: one per worker, or one with leading worker axes."""
        return self._block.states


def peak_rss_bytes() -> int:
    """Return this process's largest resident memory so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def set_threads(threads: int) -> None:
    """Give torch this many threads; one keeps sums in the same order on every engine."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)

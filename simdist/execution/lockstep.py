"""The lock-step loop: a block of worker coroutines advances wave by wave, and records what it asked for.

All blocks of a run execute the same loop on their own; they meet only in :class:`Exchange.swap`, so no central
process stands between two collectives.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field, fields
from itertools import zip_longest
from operator import attrgetter
from typing import Any, get_args

from torch import Tensor

from simdist.communication.trace import CollectiveOp, ComputeOp, SleepOp, StepOps, WaveOps
from simdist.errors import InputError, ProgramError
from simdist.execution.agreement import END, Topic
from simdist.execution.coding import OPS
from simdist.execution.collectives import Groups, Part
from simdist.execution.exchange import Exchange
from simdist.execution.garbage import only_young
from simdist.execution.saved import Form, SavedBlock, dealt_out
from simdist.execution.wiring import COLLECTIVES, Wiring, describe_local, words
from simdist.program import MeshShape, Worker
from simdist.program.program import LockstepProgram
from simdist.program.requests import Request, Wave
from simdist.program.state import from_plain, to_plain

#: Called after every wave with the descriptors of the step so far; a paced run holds the transfers back here.
Hold = Callable[[StepOps], None]


class Resolver(ABC):
    """Computes what the workers of a block receive for one wave.

    Attributes:
        step: the step under way (0 before the first): random roundings of a wire differ from step to step.
        wave: number of the wave under way within the step, from 0.
    """

    step: int = 0
    wave: int = 0

    @abstractmethod
    def resolve(self, waves: Sequence[Wave]) -> tuple[list[tuple[Any, ...]], StepOps]:
        """Return each worker's answers and the descriptors of the wave, measurements left out.

        A wave becomes several where one collective is carried out as two, one after the other.
        """

    def finish(self) -> None:  # noqa: B027 - not abstract: a resolver that has all workers has nobody to wait for
        """End a step: together with the other blocks, where there are any.

        Raises:
            ProgramError: when they are not at their step's end.
        """

    def topic(self, wave: Wave) -> Topic:
        """Return what a wave is about: the same for all blocks of a lock-step program."""
        return Topic(self.step, self.wave, [_kind(request) for request in wave])


def in_phases(items: Sequence[Sequence[CollectiveOp | ComputeOp | SleepOp]]) -> StepOps:
    """Turn the descriptors of a wave's items, each a sequence of phases, into waves: all first phases, all second."""
    phases = zip_longest(*items)
    return tuple(wave for phase in phases if (wave := tuple(op for op in phase if op is not None)))


class BlockResolver(Resolver):
    """One coroutine per worker: every request holds that worker's own tensor."""

    def __init__(self, mesh: MeshShape, wiring: Wiring, exchange: Exchange) -> None:
        self.exchange = exchange
        self.wiring = wiring
        self.local = exchange.blocks[exchange.me]
        self.groups = Groups(mesh, self.local, exchange.blocks, exchange.me)

    def resolve(self, waves: Sequence[Wave]) -> tuple[list[tuple[Any, ...]], StepOps]:
        items: list[Part | None] = []
        ops: list[Sequence[CollectiveOp | ComputeOp | SleepOp]] = []
        for requests in self._aligned(waves):
            first = requests[0]
            if isinstance(first, COLLECTIVES):
                part = self.groups.part(requests, self.wiring.coder(first, self.step))
                items.append(part)
                ops.append(part.ops)
            else:
                items.append(None)
                ops.append((describe_local(first),))
        arrived = swap_parts(self.exchange, [part for part in items if part], self.topic(waves[0]))
        columns = [part.answers(arrived) if part else [None] * len(waves) for part in items]
        return [tuple(column[i] for column in columns) for i in range(len(waves))], in_phases(ops)

    def finish(self) -> None:
        self.exchange.meet(Topic(self.step, END))

    def _aligned(self, waves: Sequence[Wave]) -> list[Any]:
        """Regroup the waves of all workers by item, after checking that they ask for the same things."""
        first = waves[0]
        for position, wave in enumerate(waves):
            mine = [_signature(request) for request in wave]
            if mine != [_signature(request) for request in first]:
                raise ProgramError(
                    f"workers of a lock-step program must ask for the same things: worker {self.local[0]} asks for "
                    f"[{'; '.join(map(words, first))}], worker {self.local[position]} for "
                    f"[{'; '.join(map(words, wave))}]. Expected one sequence of collectives for all workers; "
                    "workers that differ need a schedule with lockstep = False"
                )
        return list(zip(*waves, strict=True))


def swap_parts(exchange: Exchange, parts: Sequence[Part], topic: Topic) -> dict[int, Iterator[Tensor]]:
    """Exchange what the items of one wave need, in one message per pair of blocks."""
    blocks = range(len(exchange.blocks))
    outgoing = {b: [x for part in parts for x in part.outgoing.get(b, [])] for b in blocks}
    incoming = {b: [x for part in parts for x in part.incoming.get(b, [])] for b in blocks}
    arrived = exchange.swap(
        {b: tensors for b, tensors in outgoing.items() if tensors},
        {b: tensors for b, tensors in incoming.items() if tensors},
        topic,
    )
    return {b: iter(tensors) for b, tensors in arrived.items()}


def _kind(request: Request) -> str:
    """Describe a request without its sizes, which a cohort's leading axes are part of."""
    if isinstance(request, COLLECTIVES):
        label = request.label
        return f"{OPS[type(request)]} of {label.tensor!r} on axis {request.axis.name!r} ({label.purpose})"
    return type(request).__name__


def _said(kind: type) -> Callable[[Any], tuple[Any, ...]]:
    """Return a function from a request to what all workers of a lock-step program must say alike."""
    names = [part.name for part in fields(kind) if part.name not in ("axis", "tensor")]
    if kind in COLLECTIVES:
        names.append("axis.name")
    # two at least, as one attribute alone would not come as a tuple
    return attrgetter(names[0], *names)


_SAID = {kind: _said(kind) for kind in get_args(Request)}


def _signature(request: Request) -> tuple[Any, ...]:
    kind = type(request)
    return (kind, *_SAID[kind](request))


@dataclass
class StepOutcome:
    """What one step did: its descriptors, and the numbers that its program reported."""

    step: int
    ops: StepOps
    report: dict[str, float | None]
    observations: list[dict[str, Any]] = field(default_factory=list)


class LockstepBlock:
    """The workers of one block, their states, and the loop that drives them through a step."""

    def __init__(
        self, program: LockstepProgram, workers: Sequence[Worker], resolver: Resolver, hold: Hold | None = None
    ) -> None:
        self.program = program
        self.workers = workers
        self.resolver = resolver
        self.hold = hold
        self.states: list[Any] = []
        #: the last step that all workers have finished; ``states`` are those after it
        self.completed = 0

    def start(self) -> None:
        """Make the initial states."""
        self.states, ops = self._drive([self.program.start(worker) for worker in self.workers])
        if any(ops):
            raise ProgramError("a program's start() asked for transfers or compute; expected the first in step 1")

    def step(self, step: int) -> StepOutcome:
        """Run one step of all workers."""
        self.resolver.step = step
        for worker in self.workers:
            worker.observations.clear()
        with only_young():
            results, ops = self._drive(
                [self.program.step(worker, old, step) for worker, old in zip(self.workers, self.states, strict=True)],
                self.hold,
            )
        self.resolver.finish()
        self.states = [state for state, _ in results]
        self.completed = step
        report = {key: scalar(value) for key, value in results[0][1].items()}
        seen = [{k: scalar(v) for k, v in row.items()} for row in self.workers[0].observations]
        return StepOutcome(step, ops, report, seen)

    def save(self, workers: range) -> bytes:
        """Return the states as they are between two steps.

        Args:
            workers: whose they are.

        Raises:
            ProgramError: for a state that is no plain data.
        """
        return SavedBlock(workers, self._form, [to_plain(state) for state in self.states]).to_bytes()

    def restore(self, blocks: Sequence[bytes], workers: range, step: int) -> None:
        """Go on from saved states; after :meth:`start`, whose states say what form they have.

        Args:
            blocks: all that were saved together, or those with this block's workers.
            workers: of this block.
            step: the step after which they were saved.

        Raises:
            InputError: when they are not these workers' states of this program.
        """
        saved = dealt_out(blocks, workers, self._form)
        try:
            self.states = [from_plain(like, plain) for like, plain in zip(self.states, saved, strict=True)]
        except ProgramError as error:
            raise InputError(f"the checkpoint does not fit this program: {error}") from error
        self.completed = step

    @property
    def _form(self) -> Form:
        return "cohort" if self.workers[0].index is None else "workers"

    def parameters(self) -> dict[str, Tensor]:
        """Return the full parameters, as the first worker of the block sees them."""
        results, _ = self._drive(
            [self.program.parameters(worker, state) for worker, state in zip(self.workers, self.states, strict=True)]
        )
        found: dict[str, Tensor] = results[0]
        return self.workers[0].ops.plain(found)

    def _drive(
        self, programs: Sequence[Coroutine[Any, Any, Any]], hold: Hold | None = None
    ) -> tuple[list[Any], StepOps]:
        """Run coroutines to their end, all workers wave by wave."""
        answers: list[Any] = [None] * len(programs)
        record: list[WaveOps] = []
        try:
            self.resolver.wave = 0
            while True:
                waves, results = [], []
                for program, answer in zip(programs, answers, strict=True):
                    try:
                        waves.append(program.send(answer))
                    except StopIteration as stop:
                        results.append(stop.value)
                if results and waves:
                    raise ProgramError(
                        f"{len(results)} of {len(programs)} workers ended their step while the others still ask for "
                        f"[{'; '.join(map(words, waves[0]))}]; expected the same sequence of requests on all workers"
                    )
                if results:
                    return results, tuple(record)
                answers, ops = self.resolver.resolve(waves)
                self.resolver.wave += 1
                if ops:
                    record.extend(ops)
                    if hold is not None:
                        hold(tuple(record))
        finally:
            for program in programs:
                program.close()


def scalar(value: Any) -> Any:
    """Return a reported tensor as a number (a cohort's copies of it are averaged); other values as they are.

    None for a tensor without values, as a plan has them.
    """
    if not isinstance(value, Tensor):
        return value
    return None if value.is_meta else float(value.detach().double().mean())

"""The handle given to worker programs: who I am, my mesh, my random streams, my gradients, and waiting."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeAlias

from torch import Tensor

from simdist.program.ask import ask, ask_wave
from simdist.program.mesh import Mesh, label_of
from simdist.program.requests import Compute, Message, Receive, Reduce, ReduceScatter, Request, Send, Sleep, Wire

Params = dict[str, Tensor]
Loss = Callable[[Params, Any], Tensor]
Pack = Callable[[Params], Tensor]
#: how a value will be asked for: by this request (whose tensor is left out), as every worker's own, or not known yet
Use: TypeAlias = Reduce | ReduceScatter | Literal["own"] | None


class Gradients(Protocol):
    """This worker's gradients, perhaps not computed yet (a stacked cohort defers them until they are reduced)."""

    def packed(self, pack: Pack, use: Use = None) -> Any:
        """Return ``pack(gradients)`` as something that a collective of the mesh takes as its tensor.

        Args:
            use: what it is for. Saves a cohort time and memory, as it then sums while it computes; values do not
                depend on it.
        """

    def loss(self) -> Any:
        """Return this worker's training loss as something that a collective of the mesh takes as its tensor."""


class WorkerOps(ABC):
    """What an engine provides beneath a worker handle. Purely local: nothing here suspends."""

    @abstractmethod
    def each(self, make: Callable[[int], Tensor]) -> Tensor:
        """Return ``make(w)`` for this worker w; a cohort stacks all of them along its leading worker axes."""

    @abstractmethod
    def alike(self, x: Tensor) -> Tensor:
        """Return a value that all workers hold alike; a cohort adds leading worker axes of size one."""

    @abstractmethod
    def plain(self, params: Params) -> Params:
        """Return values that all workers hold alike without leading worker axes: the inverse of :meth:`alike`."""

    @abstractmethod
    def own_bytes(self, x: Tensor) -> int:
        """Return the bytes of this worker's own part of ``x``: of one worker's, for a cohort."""

    @abstractmethod
    def gradients(self, loss: Loss, params: Params, batch: Callable[[int], Any]) -> Gradients:
        """Return the gradients of ``loss(params, batch(w))`` with respect to every tensor of ``params``."""

    @abstractmethod
    def evaluate(self, loss: Loss, params: Params, batches: Sequence[Any]) -> Tensor:
        """Return this worker's mean loss over its share of ``batches`` times the fraction of them it took."""

    @abstractmethod
    def alone(self) -> WorkerOps:
        """Return the local work of a worker that has no fellow workers (see :meth:`Worker.alone`)."""

    def lazily(self, function: Callable[..., Tensor], *operands: Tensor) -> Any:
        """Return ``function(*operands)`` as something that one collective of the mesh takes as its tensor.

        A cohort computes it for a few workers at a time, when the collective's turn comes: what all workers send may be
        larger than all that they hold.

        Args:
            function: sees dimensions from the end only.
            operands: this worker's, of the same leading axes or of axes of size one.
        """
        return function(*operands)

    @abstractmethod
    def realize(self, x: Any) -> Tensor:
        """Return a deferred value as a tensor; a tensor comes back as it is."""


@dataclass(frozen=True, eq=False)
class Worker:
    """One emulated training participant, or a whole cohort of them in lock step.

    Attributes:
        index: global worker index, 0 to ``count`` - 1; None for a stacked cohort.
        count: number of workers.
        mesh: the axes (see :class:`simdist.program.mesh.Mesh`).
        seed: the scenario's seed; random streams are keyed by (seed, worker, purpose, step).
    """

    index: int | None
    count: int
    mesh: Mesh
    seed: int
    ops: WorkerOps
    observations: list[dict[str, Any]] = field(default_factory=list)
    measures: bool = False

    def labelled(self, purpose: str, tensor: str = "", wire: Wire = "factors") -> Worker:
        """Return this worker with every transfer labelled for the ledger."""
        mesh = self.mesh.labelled(label_of(purpose, tensor, wire))
        # not by replace(), which takes longer: every worker does this some twenty times a step
        return Worker(self.index, self.count, mesh, self.seed, self.ops, self.observations, self.measures)

    def measuring(self, now: bool) -> Worker:
        """Return this worker with diagnostics switched on or off for the coming step."""
        return replace(self, measures=now)

    def observe(self, **values: Any) -> None:
        """Note a diagnostic row (see ``diagnostics.parquet``); values are tensors or numbers."""
        self.observations.append(values)

    def alone(self) -> Worker:
        """Return this worker on a mesh of its own: every axis has size one, so nothing travels.

        A parameter server applies its rule this way. Not for stacked cohorts.
        """
        return replace(self, mesh=self.mesh.alone(), count=1, ops=self.ops.alone())

    async def compute(self, flops: float, what: str = "", *, memory_bytes: float = 0.0) -> None:
        """Be busy for ``flops`` operations of simulated compute that read and write ``memory_bytes`` of memory.

        The worker's label says for what: the clock lets a unit's ``forward`` and ``backward`` overlap with its traffic.
        """
        if flops > 0 or memory_bytes > 0:
            await ask(Compute(float(flops), float(memory_bytes), what, self.mesh.workers.label))

    async def sleep(self, seconds: float) -> None:
        """Be idle for simulated seconds."""
        await ask(Sleep(float(seconds)))

    async def send(self, to: int, tensor: Tensor, *, tag: str = "", wait: bool = True, note: Any = None) -> None:
        """Send a tensor to worker ``to`` point to point.

        With ``wait`` the call returns when the message has arrived; without, at once, and the message travels on.
        ``note`` is a small value (a step number, a version) that rides along uncounted, like a header.
        """
        label = self.mesh.workers.label
        await ask(Send(to, tensor, tag, wait, label, note))

    async def receive(self, source: int | None = None, *, tag: str | None = None) -> Message:
        """Wait for a message from ``source`` (None: anybody, earliest first)."""
        message: Message = await ask(Receive(source, tag))
        return message


async def together(*programs: Coroutine[Any, Any, Any]) -> list[Any]:
    """Run coroutines side by side in waves: what they ask in one round is in flight together.

    A wave over all matrices of a model therefore pays latency once. Rounds are in lock step: the next wave starts
    when every request of the last one is answered. Results come back in the order of the arguments.
    """
    results: list[Any] = [None] * len(programs)
    waiting: dict[int, tuple[Request, ...]] = {}
    answers: dict[int, tuple[Any, ...] | None] = dict.fromkeys(range(len(programs)))
    try:
        while answers:
            for i, answer in answers.items():
                try:
                    waiting[i] = programs[i].send(answer)
                except StopIteration as stop:
                    results[i] = stop.value
            if not waiting:
                break
            flat = await ask_wave(tuple(request for wave in waiting.values() for request in wave))
            answers, at = {}, 0
            for i, wave in waiting.items():
                answers[i] = flat[at : at + len(wave)]
                at += len(wave)
            waiting = {}
    finally:
        for program in programs:
            program.close()
    return results

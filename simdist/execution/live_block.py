"""A block of irregular workers: one coroutine each, resumed one by one when the virtual clock says so.

Tensors stay in the block that made them. What leaves is a *parcel*, an opaque handle on an encoded payload, and a
descriptor for the clock; what comes back are the parcels that a worker's requests are answered with. In one process a
parcel is the payload itself; between Ray actors it is an object reference, so tensors do not pass through the driver.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from simdist.codecs import Codec, Noise, Payload, payload_bytes, silent
from simdist.communication.trace import ReceiveOp, SendOp, WaveOps
from simdist.errors import ProgramError, SimdistError
from simdist.execution.coding import Coder, decode, encode
from simdist.execution.collectives import PARTS, Group, Part
from simdist.execution.engine import Holder, peak_rss_bytes
from simdist.execution.inline import inline_worker
from simdist.execution.lockstep import scalar
from simdist.execution.wiring import COLLECTIVES, Wiring, describe_free, describe_local, words
from simdist.program import MeshShape, Worker
from simdist.program.mesh import Label
from simdist.program.program import IrregularProgram
from simdist.program.random import stream
from simdist.program.requests import Collective, Message, Receive, Request, Send, Wave


@dataclass(frozen=True)
class Mail:
    """The answer to a receive: whose message, and the parcel that holds it."""

    source: int
    parcel: Any


@dataclass(frozen=True)
class Meeting:
    """The answer to a collective: all members' parcels, and which workers these are, in member order.

    ``event`` numbers the collective, so that a block computes it once for all its members.
    """

    event: int
    parcels: tuple[Any, ...]
    members: tuple[int, ...]


Delivery = Mail | Meeting | None


@dataclass(frozen=True)
class Asked:
    """What a worker did when it was resumed.

    Attributes:
        ops: descriptors of its next wave; None when its program has ended.
        parcels: per item a handle on what it hands in (sends, collectives), else None.
        observed: rows noted since it last suspended.
        params: the final parameters, if this worker's program returned them.
    """

    worker: int
    ops: WaveOps | None
    parcels: tuple[Any, ...] = ()
    observed: list[dict[str, Any]] = field(default_factory=list)
    params: dict[str, Tensor] | None = None


Wrap = Callable[[Any], Any]


@dataclass(frozen=True)
class _Parcel:
    """A message under way; ``key``: whose and the how manieth it is, which keys its noise."""

    payload: Payload
    label: Label
    shape: torch.Size
    dtype: torch.dtype
    key: tuple[int, int]
    tag: str
    note: Any


class LiveBlock:
    """Holds and resumes the coroutines of some workers.

    Args:
        wrap: turns a payload into a parcel; ``unwrap`` is its inverse.
    """

    def __init__(
        self,
        program: IrregularProgram,
        workers: Sequence[Worker],
        wiring: Wiring,
        wrap: Wrap = lambda payload: payload,
        unwrap: Wrap = lambda parcel: parcel,
    ) -> None:
        self._wiring = wiring
        self._wrap = wrap
        self._unwrap = unwrap
        self._workers = {worker.index: worker for worker in workers}
        self._programs: dict[int, Coroutine[Any, Any, Any]] = {
            index: program.main(worker) for index, worker in self._workers.items() if index is not None
        }
        self._waves: dict[int, Wave] = {}
        self._sent: Counter[int] = Counter()
        self._met: dict[int, tuple[list[Tensor], int]] = {}

    def resume(self, deliveries: Mapping[int, tuple[Delivery, ...] | None]) -> list[Asked]:
        """Resume workers with their answers (None: for the first time) and return what each asks next."""
        return [self._resume(worker, answers) for worker, answers in deliveries.items()]

    def close(self) -> None:
        for program in self._programs.values():
            program.close()

    def _resume(self, worker: int, deliveries: tuple[Delivery, ...] | None) -> Asked:
        answers = None
        if deliveries is not None:
            wave = self._waves.pop(worker)
            answers = tuple(
                self._answer(worker, request, delivery) for request, delivery in zip(wave, deliveries, strict=True)
            )
        try:
            wave = self._programs[worker].send(answers)
        except StopIteration as stop:
            return Asked(worker, None, observed=self._observed(worker), params=stop.value)
        except SimdistError:
            raise
        except Exception as error:  # whatever a user's program raises
            text = str(error).strip().partition("\n")[0]
            raise ProgramError(f"worker {worker} raised {type(error).__name__}: {text}") from error
        self._waves[worker] = wave
        handed = [self._hand_in(worker, request) for request in wave]
        ops = tuple(op for op, _ in handed)
        return Asked(worker, ops, tuple(parcel for _, parcel in handed), self._observed(worker))

    def _observed(self, worker: int) -> list[dict[str, Any]]:
        rows = self._workers[worker].observations
        found = [{name: scalar(value) for name, value in row.items()} for row in rows]
        rows.clear()
        return found

    def _hand_in(self, worker: int, request: Request) -> tuple[Any, Any]:
        """Return a request's descriptor and parcel."""
        if isinstance(request, COLLECTIVES):
            part = _part([request], [worker], self._coder(request, 0), request.axis.size)
            return part.ops[0] if part.ops else describe_free(request), self._wrap(request.tensor)
        if isinstance(request, Send):
            codec, x = self._wiring.codec(request.label), request.tensor.detach()
            self._sent[worker] += 1
            key = (worker, self._sent[worker])
            # a copy: the sender may go on at once and change its tensor in place
            payload = (x.clone(),) if codec is None else encode(codec, x.clone(), 0, self._noise(codec, *key))
            label = request.label
            name = label.encoding or (codec.label if codec else "none")
            op = SendOp(
                request.to, payload_bytes(payload), label.purpose, label.tensor, name, request.tag, request.wait
            )
            return op, self._wrap(_Parcel(payload, label, x.shape, x.dtype, key, request.tag, request.note))
        if isinstance(request, Receive):
            return ReceiveOp(request.source, request.tag), None
        return describe_local(request), None

    def _answer(self, worker: int, request: Request, delivery: Delivery) -> Any:
        if isinstance(delivery, Mail):
            parcel: _Parcel = self._unwrap(delivery.parcel)
            return Message(delivery.source, parcel.tag, self._opened(parcel), parcel.note)
        if isinstance(delivery, Meeting):
            assert isinstance(request, COLLECTIVES)
            if delivery.event not in self._met:
                tensors = [self._unwrap(parcel) for parcel in delivery.parcels]
                members = [replace(request, tensor=tensor) for tensor in tensors]
                coder = self._coder(request, delivery.event)
                part = _part(members, delivery.members, coder, request.axis.size)
                self._met[delivery.event] = part.answers({}), 0
            values, taken = self._met.pop(delivery.event)
            if taken + 1 < sum(member in self._workers for member in delivery.members):
                self._met[delivery.event] = values, taken + 1
            return values[delivery.members.index(worker)]
        return None

    def _opened(self, parcel: _Parcel) -> Tensor:
        codec = self._wiring.codec(parcel.label)
        if codec is None:
            return parcel.payload[0]
        return decode(codec, parcel.payload, parcel.shape, parcel.dtype, self._noise(codec, *parcel.key))

    def _noise(self, codec: Codec, worker: int, number: int) -> Noise:
        """Begin the noise of a worker's n-th message."""
        if codec.random == "no":
            return silent
        generator = stream(self._wiring.seed, "wire/message", worker, number)
        return lambda shape: torch.rand(tuple(shape), generator=generator)

    def _coder(self, request: Collective, event: int) -> Coder:
        """Return the coder of a collective; there are no steps here, so its number keys the noise."""
        coder = self._wiring.coder(request, event)
        if len(coder.ops(0)) > 1:
            assert coder.codec is not None
            raise ProgramError(
                f"{words(request)}: got the codec {coder.codec.label!r}, whose sums take two collectives; expected a "
                f"cast such as 'bf16' for wire.{request.label.wire} in programs that do not run in lock step"
            )
        return coder


def _part(requests: Sequence[Any], workers: Sequence[int], coder: Coder, size: int) -> Part:
    """Begin a collective of which this block knows all members, or just one, to see what it encodes."""
    members = range(len(requests))
    group = Group(range(size), members, [members], 0)
    part: Part = PARTS[type(requests[0])](requests, workers, [group], lambda number, place: place, coder)
    return part


class LiveHosts(Holder):
    """Whoever holds all the coroutines of an irregular run."""

    @abstractmethod
    def resume(self, deliveries: Mapping[int, tuple[Delivery, ...] | None]) -> list[Asked]:
        """Resume some workers with their answers and return what each asks next, in worker order."""


class LocalHosts(LiveHosts):
    """All coroutines in this process."""

    def __init__(self, program: IrregularProgram, mesh: MeshShape, wiring: Wiring, seed: int) -> None:
        self._program = program
        self._workers = [inline_worker(mesh, index, seed) for index in range(mesh.workers)]
        self._wiring = wiring
        self._block: LiveBlock | None = None

    def start(self) -> None:
        self._block = LiveBlock(self._program, self._workers, self._wiring)

    def resume(self, deliveries: Mapping[int, tuple[Delivery, ...] | None]) -> list[Asked]:
        assert self._block is not None, "start() comes first"
        return self._block.resume(deliveries)

    def peak_rss_bytes(self) -> int:
        return peak_rss_bytes()

    def close(self) -> None:
        if self._block is not None:
            self._block.close()

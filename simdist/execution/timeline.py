"""The virtual clock: waves of descriptors in, times out. Event-driven, one clock per worker, no tensors.

Workers hand in *waves*, items that are in flight together; a wave is over when all its items are. The rules:

- Compute items of a wave add up on the worker's one compute stream, which starts with the wave; sleeps run beside it.
- A collective starts, group by group, when its last member has asked for it. The k-th collective that each member of
  a group asks for on an axis must be the same one.
- Fusion: collectives of one wave with the same (axis, op, root) that a group starts together run as one schedule. Their
  payloads add up, latency is paid once, they start and end together (NCCL group calls, dion's mega-batches). Each
  still is an event, and a ledger row, of its own.
- All else that is under way shares the links by max-min fairness.
- Collectives for diagnostics synchronise, but take no time.

Times are seconds as floats. Nothing here reads a wall clock; ties go by (time, worker, counter).
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from simdist.communication.plans.plan import Collectives, Plan
from simdist.communication.trace import CollectiveOp, ComputeOp, ReceiveOp, SendOp, SleepOp, WaveOps
from simdist.errors import DeadlockError, ProgramError
from simdist.execution.carrier import Carrier
from simdist.execution.compute_model import ComputeModel
from simdist.execution.events import (
    DIAGNOSTIC,
    Answer,
    Event,
    Op,
    Place,
    Woken,
    op_detail,
    op_name,
    worker_list,
)
from simdist.execution.planning import Planner
from simdist.execution.segments import Segments
from simdist.network.network import Network

__all__ = ["Answer", "Event", "Place", "Timeline", "Woken"]


@dataclass(slots=True)
class _Wave:
    ops: WaveOps
    number: int
    open: int
    answers: list[Answer]
    done: list[bool]
    joined: dict[int, _Collective] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Collective:
    op: CollectiveOp
    group: tuple[int, ...]
    first: int
    places: dict[int, Place] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Message:
    op: SendOp
    place: Place
    start: float
    arrived: bool = False


class Timeline:
    """Times of waves handed in by workers, as they come.

    Args:
        network: routes and links between the workers.
        mesh: (replicas, shards).
        collectives: how groups carry out collectives.
        compute: how long workers compute.
        start: when each worker begins (default: all at zero).

    Attributes:
        events: what is over, in order of completion.
    """

    def __init__(
        self,
        network: Network,
        mesh: tuple[int, int],
        collectives: Collectives,
        compute: ComputeModel,
        start: Sequence[float] | None = None,
    ) -> None:
        count = mesh[0] * mesh[1]
        assert network.workers == count == compute.workers
        self.events: list[Event] = []
        self._planner = Planner(network, mesh, collectives)
        self._groups = self._planner.groups
        self._compute = compute
        self._computed = [0] * count
        self._clocks = [0.0] * count if start is None else [float(time) for time in start]
        self._busy = [0.0] * count
        self._begun = [0] * count
        self._waves: dict[int, _Wave] = {}
        self._complete: set[int] = set()
        self._carrier = Carrier(network)
        self._counter = 0
        # Per axis and worker: how many collectives it has asked for; per (axis, group's first worker, k): who is there.
        self._asked: dict[tuple[str, int], int] = defaultdict(int)
        self._gathering: dict[tuple[str, int, int], _Collective] = {}
        # Messages of one (sender, receiver, tag) keep their order; per receiver: delivered and not yet taken.
        self._lanes: dict[tuple[int, int, str], deque[_Message]] = defaultdict(deque)
        self._delivered: dict[int, list[tuple[float, int, int, _Message]]] = defaultdict(list)
        self._receiving: dict[int, list[tuple[int, ReceiveOp, float]]] = {}

    @property
    def now(self) -> float:
        """The current instant in seconds."""
        return self._carrier.now

    def clock(self, worker: int) -> float:
        """Return when the worker last woke."""
        return self._clocks[worker]

    def compute_seconds(self, worker: int) -> float:
        """Return how long the worker has been busy computing, in all."""
        return self._busy[worker]

    def waiting(self) -> Mapping[int, tuple[Op, ...]]:
        """Return the incomplete items of each worker that waits."""
        return {
            worker: tuple(op for op, done in zip(wave.ops, wave.done, strict=True) if not done)
            for worker, wave in sorted(self._waves.items())
        }

    def submit(self, worker: int, ops: WaveOps) -> int:
        """Let a worker that is awake wait for a wave, from its own current time on; return the wave's number.

        A worker that :meth:`advance` has woken hands in its next wave before the next call of it, or never.

        Raises:
            ProgramError: when a collective differs from what the other members of its group ask for, or a message
                goes to a worker that does not exist.
        """
        assert worker not in self._waves, f"worker {worker} already waits"
        assert self._clocks[worker] >= self.now, f"worker {worker} slept through {self.now - self._clocks[worker]} s"
        number = self._begun[worker]
        self._begun[worker] += 1
        self._waves[worker] = _Wave(ops, number, len(ops), [None] * len(ops), [False] * len(ops))
        if self._clocks[worker] > self.now:
            self._carrier.at(self._clocks[worker], partial(self._begin, worker))
        else:
            self._begin(worker)
        return number

    def advance(self) -> list[Woken]:
        """Move to the next instant at which a worker's wave is complete; return who wakes, in worker order.

        Returns an empty list when nobody waits any more; messages still under way have arrived then.

        Raises:
            DeadlockError: when workers wait and nothing can happen any more.
        """
        while True:
            self._finish_instant()
            if self._complete:
                return [self._wake(worker) for worker in sorted(self._complete)]
            upcoming = self._carrier.next_time()
            if upcoming is None:
                if self._waves:
                    raise DeadlockError(self._deadlock())
                return []
            self._carrier.now = upcoming

    # -- instants ---------------------------------------------------------------------------------------------------

    def _finish_instant(self) -> None:
        """Let everything happen that is due now, then hand out messages: of one instant, the lowest sender's first."""
        while self._carrier.is_due():
            self._carrier.happen()
        for receiver in sorted(self._receiving):
            self._take(receiver)

    def _wake(self, worker: int) -> Woken:
        self._complete.discard(worker)
        self._clocks[worker] = self.now
        return Woken(worker, self.now, tuple(self._waves.pop(worker).answers))

    def _done(self, place: Place, answer: Answer = None) -> None:
        wave = self._waves[place.worker]
        wave.answers[place.item] = answer
        wave.done[place.item] = True
        wave.open -= 1
        if wave.open == 0:
            self._complete.add(place.worker)

    # -- the start of a wave ----------------------------------------------------------------------------------------

    def _begin(self, worker: int) -> None:
        wave = self._waves[worker]
        busy_until = self.now
        ready: dict[tuple[str, str, int], list[_Collective]] = {}
        if not wave.ops:
            self._complete.add(worker)
        for item, op in enumerate(wave.ops):
            place = Place(worker, wave.number, item)
            if isinstance(op, CollectiveOp):
                collective = wave.joined[item] = self._join(op, place)
                if len(collective.places) == len(collective.group):
                    ready.setdefault((op.axis, op.op, op.root), []).append(collective)
            elif isinstance(op, ComputeOp):
                self._computed[worker] += 1
                busy = self._compute.seconds(op, worker, self._computed[worker])
                self._carrier.at(busy_until + busy, partial(self._elapse, op, "compute", place, busy_until, busy))
                busy_until += busy
            elif isinstance(op, SleepOp):
                self._carrier.at(self.now + op.seconds, partial(self._elapse, op, "sleep", place, self.now, 0.0))
            elif isinstance(op, SendOp):
                self._send(op, place)
            else:
                self._receiving.setdefault(worker, []).append((item, op, self.now))
        for collectives in ready.values():
            self._start(collectives)

    def _elapse(self, op: Op, kind: str, place: Place, start: float, busy: float) -> None:
        self._busy[place.worker] += busy
        self.events.append(Event(op, kind, (place,), start, self.now))
        self._done(place)

    # -- collectives ------------------------------------------------------------------------------------------------

    def _join(self, op: CollectiveOp, place: Place) -> _Collective:
        group = self._groups.of(op.axis, place.worker)
        if not 0 <= op.root < len(group):
            raise ProgramError(
                f"worker {place.worker} asks for {op_name(op)} from root {op.root}; expected 0 to {len(group) - 1}"
            )
        turn = self._asked[op.axis, place.worker]
        self._asked[op.axis, place.worker] += 1
        key = (op.axis, group[0], turn)
        collective = self._gathering.get(key)
        if collective is None:
            collective = self._gathering[key] = _Collective(op, group, place.worker)
        if collective.op != op:
            raise ProgramError(
                f"worker {collective.first} asks for {op_detail(collective.op)}, but worker {place.worker} of the same "
                f"group asks for {op_detail(op)}; as number {turn + 1} on the axis {op.axis} all members must ask for "
                "the same collective"
            )
        collective.places[place.worker] = place
        if len(collective.places) == len(group):
            del self._gathering[key]
        return collective

    def _start(self, collectives: list[_Collective]) -> None:
        op, group = collectives[0].op, collectives[0].group
        number = self._groups.by_axis[op.axis].index(group)
        for free in (True, False):
            fused = [one for one in collectives if (one.op.purpose == DIAGNOSTIC) == free]
            if fused:
                payload = 0 if free else sum(one.op.payload_bytes for one in fused)
                plan = self._planner.plans(op.axis, op.op, payload, op.root)[number]
                rounds = () if free else plan.rounds(op.op, payload, len(group), op.root)
                segments = Segments(rounds, plan.in_flight(op.op))
                self._carrier.collective(group, segments, partial(self._end, fused, self.now, plan))

    def _end(self, collectives: Sequence[_Collective], start: float, plan: Plan) -> None:
        for collective in collectives:
            places = tuple(collective.places[worker] for worker in collective.group)
            event = Event(collective.op, "collective", places, start, self.now, plan=plan)
            self.events.append(event)
            for place in places:
                self._done(place, len(self.events) - 1)

    # -- messages ---------------------------------------------------------------------------------------------------

    def _send(self, op: SendOp, place: Place) -> None:
        if not 0 <= op.to < len(self._clocks):
            raise ProgramError(
                f"worker {place.worker} sends a message to worker {op.to}; expected 0 to {len(self._clocks) - 1}"
            )
        message = _Message(op, place, self.now)
        self._lanes[place.worker, op.to, op.tag].append(message)
        self._carrier.message(place.worker, op.to, op.payload_bytes, partial(self._arrive, message))
        if not op.wait:
            self._done(place)

    def _arrive(self, message: _Message) -> None:
        """Deliver what has arrived with nothing earlier of the same lane still under way."""
        message.arrived = True
        lane = self._lanes[message.place.worker, message.op.to, message.op.tag]
        while lane and lane[0].arrived:
            ready = lane.popleft()
            self._counter += 1
            entry = (self.now, ready.place.worker, self._counter, ready)
            self._delivered[ready.op.to].append(entry)
            self.events.append(Event(ready.op, "send", (ready.place,), ready.start, self.now))
            if ready.op.wait:
                self._done(ready.place, len(self.events) - 1)

    def _take(self, receiver: int) -> None:
        delivered = self._delivered[receiver]
        delivered.sort(key=lambda entry: entry[:3])
        still: list[tuple[int, ReceiveOp, float]] = []
        for item, op, since in self._receiving.pop(receiver):
            match = next((entry for entry in delivered if _matches(op, entry[3])), None)
            if match is None:
                still.append((item, op, since))
                continue
            delivered.remove(match)
            place = Place(receiver, self._waves[receiver].number, item)
            message = match[3].place
            self.events.append(Event(op, "receive", (place,), since, self.now, message))
            self._done(place, message)
        if still:
            self._receiving[receiver] = still

    # -- words for people -------------------------------------------------------------------------------------------

    def _deadlock(self) -> str:
        lines = [
            f"worker {worker} waits {self._reason(wave, item)}"
            for worker, wave in sorted(self._waves.items())
            for item, done in enumerate(wave.done)
            if not done
        ]
        return f"deadlock at {self.now:.6g} simulated seconds: " + "; ".join(lines)

    @staticmethod
    def _reason(wave: _Wave, item: int) -> str:
        op = wave.ops[item]
        if isinstance(op, CollectiveOp):
            collective = wave.joined[item]
            absent = [member for member in collective.group if member not in collective.places]
            return f"in {op_name(op)} for {worker_list(absent)}"
        assert isinstance(op, ReceiveOp), "all else ends by itself"
        source = "anybody" if op.source is None else f"worker {op.source}"
        return f"for a message from {source}" + ("" if op.tag is None else f" tagged {op.tag!r}")


def _matches(op: ReceiveOp, message: _Message) -> bool:
    from_source = op.source is None or op.source == message.place.worker
    return from_source and (op.tag is None or op.tag == message.op.tag)

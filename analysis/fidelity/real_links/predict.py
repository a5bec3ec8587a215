"""Simulated seconds and bytes of the measured cases: one number is calibrated, on point-to-point messages at one rate.

The network is a star whose links carry Ethernet frames of 1500-byte packets, the collectives are the profile ``gloo``.
What the throttled links of this test bed do besides (see ../README.md) is derived from their settings:

- *Acknowledgements.* A frame of 66 bytes goes back for every two segments, or for every piece of frames. In a ring of
  three hosts or more it shares the link with what goes the other way; between two hosts that exchange, it rides on it.
- *Head start.* A token bucket lets its contents pass at once after a pause.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from itertools import chain
from typing import NamedTuple

import numpy as np

from analysis.fidelity.real_links.cases import Case, Measurement
from simdist.communication.plans import GroupShape, collectives_named
from simdist.communication.plans.plan import Plan, Round, Rounds
from simdist.errors import InputError
from simdist.execution.collective_times import CollectiveTimes
from simdist.execution.planning import Planner
from simdist.execution.segments import cut
from simdist.network.flows import drain
from simdist.network.star import Star

#: bytes of an Ethernet frame that Linux counts besides its packet, of a packet that are no payload, and of a packet
FRAME_BYTES, HEADER_BYTES, MTU = 14, 52, 1500
#: what gloo sends before a message's payload, and in its words "ready to send" and "ready to receive": six numbers
#: (``Op.preamble`` in gloo/transport/tcp/pair.h)
PREAMBLE_BYTES = 48
#: the one measured case that the model is told about
CALIBRATION = Case("send", 2, 65536, 100_000_000)


class Prediction(NamedTuple):
    """A measured case and what the simulator says of it.

    Attributes:
        measured: the measurement.
        seconds: simulated seconds.
        sent_bytes: payload bytes that each host sends under the simulator's plan.
        frame_bytes: bytes of the frames that each host sends: messages in segments with headers, what gloo says around
            each message, and acknowledgements.
    """

    measured: Measurement
    seconds: float
    sent_bytes: tuple[int, ...]
    frame_bytes: tuple[float, ...]

    @property
    def measured_seconds(self) -> float:
        return statistics.median(self.measured.seconds)

    @property
    def error(self) -> float:
        """Signed relative error of the seconds."""
        return self.seconds / self.measured_seconds - 1

    @property
    def byte_error(self) -> float:
        """Signed relative error of the bytes that all hosts sent together."""
        return sum(self.frame_bytes) / sum(self.measured.tx_bytes) - 1


def predictions(measurements: Iterable[Measurement]) -> list[Prediction]:
    """Predict every case but the one that calibrates.

    Raises:
        InputError: if that one has not been measured.
    """
    known = list(measurements)
    overhead = message_overhead(known)
    return [predicted(found, overhead) for found in known if found.case != CALIBRATION]


def message_overhead(measurements: Iterable[Measurement]) -> float:
    """Return the seconds that a message takes besides its bytes, from the one case that calibrates.

    Raises:
        InputError: if that one has not been measured.
    """
    calibration = next((found for found in measurements if found.case == CALIBRATION), None)
    if calibration is None:
        raise InputError(f"got measurements without {CALIBRATION}, which calibrates; write --measure to take it")
    return statistics.median(calibration.seconds) - _seconds(calibration, 0.0)


def predicted(measured: Measurement, overhead: float) -> Prediction:
    """Predict one case, given the seconds that a message takes besides its bytes."""
    case = measured.case
    sent, frames = [0] * case.members, [0.0] * case.members
    for a_round, repeats in _rounds(case):
        pairs = _pairs(a_round)
        for source, target, size in chain.from_iterable(cut(a_round, _in_flight(case))):
            if size == 0:
                continue  # the word that a receiver is ready, which is counted with its message
            sent[source] += size * repeats
            packets = math.ceil((size + PREAMBLE_BYTES) / (MTU - HEADER_BYTES))
            word = PREAMBLE_BYTES + HEADER_BYTES + FRAME_BYTES
            frames[source] += repeats * (size + PREAMBLE_BYTES + packets * (HEADER_BYTES + FRAME_BYTES) + word)
            acknowledgements = 0.0 if (target, source) in pairs else packets * _ack_bytes(measured)
            frames[target] += repeats * (word + acknowledgements)
    return Prediction(measured, _seconds(measured, overhead), tuple(sent), tuple(frames))


def _seconds(measured: Measurement, overhead: float) -> float:
    case = measured.case
    both_ways = any(_meets_acknowledgements(a_round) for a_round, _ in _rounds(case))
    star = Star(
        bandwidth=case.rate_bits,
        latency=0.0,
        message_overhead=overhead,
        mtu=MTU,
        header_bytes=HEADER_BYTES,
        frame_bytes=FRAME_BYTES + (round(_ack_bytes(measured)) if both_ways else 0),
    )
    network = star.network(case.members)
    if case.op == "send":
        seconds = float(drain(network.sharing, [network.route(0, 1)], [case.payload_bytes])[0])
    else:
        times = CollectiveTimes(network, Planner(network, (1, case.members), collectives_named("gloo")))
        found = times.times("shards", case.op, case.payload_bytes, 0, np.zeros(1), 0.0)
        assert found is not None, "one group alone has a closed form"
        seconds = float(found.seconds[0])
    return seconds - _head_start(measured, overhead)


def _ack_bytes(measured: Measurement) -> float:
    """Return the bytes of acknowledgements per segment."""
    return (HEADER_BYTES + FRAME_BYTES) / max(2, measured.frames_per_piece)


def _head_start(measured: Measurement, overhead: float) -> float:
    """Return the seconds by which full token buckets shorten a case.

    A link that has paused begins with what its bucket has gathered meanwhile, at most all it holds. Links pause before
    their first bytes, and between the two phases of a reduction for two messages' latency: "ready to receive" and data.
    On the longest way from host to host each generation of a broadcast's tree begins with a link of its own, and so
    does each direction of an all-gather between two hosts, which goes on after one such pause.
    """
    case = measured.case
    full = measured.burst_bytes * 8 / case.rate_bits
    if case.op == "broadcast":
        return full * len(_rounds(case))
    if case.op in ("all_reduce", "reduce_scatter"):
        return full + min(full, 2 * overhead)
    if case.op == "all_gather" and case.members == 2:
        return 2 * full + min(full, overhead)
    return full


def _rounds(case: Case) -> Rounds:
    if case.op == "send":
        return ((((0, 1, case.payload_bytes),), 1),)
    return _plan(case).rounds(case.op, case.payload_bytes, case.members)


def _in_flight(case: Case) -> int:
    return 1 if case.op == "send" else _plan(case).in_flight(case.op)


def _plan(case: Case) -> Plan:
    shape = GroupShape.flat(case.members)
    return collectives_named("gloo").choose(case.op, case.payload_bytes, shape, 0, lambda _: 0.0)


def _meets_acknowledgements(a_round: Round) -> bool:
    """Whether a host sends to one and acknowledges to another on one link."""
    pairs = _pairs(a_round)
    senders, receivers = ({pair[end] for pair in pairs} for end in (0, 1))
    return any((target, source) not in pairs for source, target in pairs if {source, target} & senders & receivers)


def _pairs(a_round: Round) -> set[tuple[int, int]]:
    return {(source, target) for source, target, _ in a_round}

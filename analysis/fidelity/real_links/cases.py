"""The measured cases, the rule that leaves some out, and the file that keeps what was measured."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

DATA = Path(__file__).parent / "data"

#: sends go from host 0 to host 1; further hosts would only look on
OPS = ("send", "all_reduce", "all_gather", "reduce_scatter", "broadcast")
MEMBERS = (2, 3, 4, 8)
PAYLOADS = tuple(kib * 1024 for kib in (64, 256, 1024, 4096, 8192))
RATES = tuple(mbit * 1_000_000 for mbit in (20, 50, 100, 200, 500))

#: a case that must take longer than this on an ideal link (s) is left out
LONGEST = 2.0


class Case(NamedTuple):
    """One collective of gloo over hosts with equal links.

    Attributes:
        op: the operation, as :class:`simdist.communication.trace.CollectiveOp` names it, or ``send``.
        members: number of hosts.
        payload_bytes: the full message: the gathered tensor of an all-gather, the whole unreduced buffer of a
            reduction, the broadcast or sent tensor. A multiple of 4 bytes times members.
        rate_bits: bit/s of each direction of each link, headers included.
    """

    op: str
    members: int
    payload_bytes: int
    rate_bits: int

    @property
    def least_seconds(self) -> float:
        """Seconds at full rate without headers, latencies or waiting, for what gloo really sends."""
        n, depth = self.members, math.ceil(math.log2(self.members))
        messages = {
            "send": 1.0,
            "all_reduce": 2 * (n - 1) / n,
            "reduce_scatter": 2 * (n - 1) / n,
            "all_gather": (n - 1) / n,
            "broadcast": depth * (depth + 1) / 2,
        }
        return messages[self.op] * self.payload_bytes * 8 / self.rate_bits

    @property
    def repeats(self) -> int:
        """Number of measured repeats: five, and nine where that is cheap."""
        return 9 if self.least_seconds < 0.2 else 5


class Measurement(NamedTuple):
    """What was measured of one case; lists have one number per repeat or per host.

    Attributes:
        case: what was run.
        seconds: from the last host's start to the last host's end, of each repeat.
        skew: from the first host's start to the last one's, of each repeat.
        tx_bytes: bytes of frames that each host put on its link, mean of all repeats; synchronisation taken off.
        cpu_seconds: processor time of all hosts' processes together, mean of the repeats.
        frames_per_piece: see :mod:`analysis.fidelity.real_links.links`.
        burst_bytes: the links' token bucket.
        date, kernel, torch: when and on what.
    """

    case: Case
    seconds: tuple[float, ...]
    skew: tuple[float, ...]
    tx_bytes: tuple[int, ...]
    cpu_seconds: float
    frames_per_piece: int
    burst_bytes: int
    date: str
    kernel: str
    torch: str

    @property
    def spread(self) -> float:
        """Difference of the slowest and the fastest repeat, as a share of their median."""
        return (max(self.seconds) - min(self.seconds)) / statistics.median(self.seconds)


COLUMNS = ("op", "members", "payload_bytes", "rate_bits", *Measurement._fields[1:])


def all_cases() -> Iterator[Case]:
    """Yield every case of the table that is not left out by :data:`LONGEST`, by members, then rate."""
    for members in MEMBERS:
        numbers = 4 * members  # bytes of one float32 for every member
        for rate in RATES:
            for op in OPS if members == 2 else OPS[1:]:
                for payload in PAYLOADS:
                    case = Case(op, members, math.ceil(payload / numbers) * numbers, rate)
                    if case.least_seconds <= LONGEST:
                        yield case


def read(file: Path) -> list[Measurement]:
    """Return the measurements of a file; none if there is no such file."""
    if not file.exists():
        return []
    with file.open(newline="", encoding="ascii") as text:
        return [_parsed(row) for row in csv.DictReader(text)]


def append(file: Path, measurements: list[Measurement]) -> None:
    """Add measurements to a file, which gets a header when it is new."""
    with file.open("a", newline="", encoding="ascii") as text:
        writer = csv.writer(text, lineterminator="\n")
        if text.tell() == 0:
            writer.writerow(COLUMNS)
        for found in measurements:
            times = (" ".join(f"{x:.6f}" for x in list_of) for list_of in (found.seconds, found.skew))
            writer.writerow((*found.case, *times, " ".join(map(str, found.tx_bytes)), *found[4:]))


def replace(file: Path, better: list[Measurement]) -> None:
    """Put measurements in the place of earlier ones of the same cases."""
    by_case = {found.case: found for found in better}
    everything = [by_case.get(found.case, found) for found in read(file)]
    new = file.with_suffix(".new")
    new.unlink(missing_ok=True)
    append(new, everything)
    new.replace(file)


def _parsed(row: dict[str, str]) -> Measurement:
    return Measurement(
        Case(row["op"], int(row["members"]), int(row["payload_bytes"]), int(row["rate_bits"])),
        tuple(map(float, row["seconds"].split())),
        tuple(map(float, row["skew"].split())),
        tuple(map(int, row["tx_bytes"].split())),
        float(row["cpu_seconds"]),
        int(row["frames_per_piece"]),
        int(row["burst_bytes"]),
        row["date"],
        row["kernel"],
        row["torch"],
    )

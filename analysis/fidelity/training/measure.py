"""Measure real training steps on throttled links, and how much computing they hold: writes ``data/``.

Needs root and iproute2 (see :mod:`analysis.fidelity.real_links.links`) and about twenty minutes. Every case is launched
twice, at different times, and once more where the two disagree. Launches that are in the file already are not repeated,
so that an interrupted run goes on.
"""

from __future__ import annotations

import csv
import os
import platform
import statistics
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

from analysis.fidelity.real_links.links import Hosts
from simdist.errors import RunError
from simdist.yaml_text import dump

HERE = Path(__file__).parent
STEPS_FILE = HERE / "data" / "steps.csv"

MEMBERS = (2, 4)
RATES = (20e6, 50e6, 100e6, 200e6, 500e6)
#: DDP rebuilds its buckets in the second step, and the PowerSGD hook begins in the third
WARMUP = 3
#: measured steps; those of PowerSGD are short
STEPS = {"ddp": 5, "powersgd": 21, "fsdp": 5}
PROFILE_STEPS = 30
#: methods whose hook computes on gradients, and the same without it
WITHOUT_HOOK = {"powersgd": "ddp"}
#: runs of every case; one more where their medians differ by more than this
LAUNCHES, AGREE = 2, 0.03


@dataclass(frozen=True)
class Launch:
    """One run of a case.

    Attributes:
        method: of :data:`analysis.fidelity.training.methods.METHODS`.
        members: hosts, with one process each.
        rate: bit/s of each link and direction.
        seconds: of every step after the warm-up, until the last host has finished it.
        tx_bytes: what a host sent per step by the kernel's counter, mean over hosts and steps.
    """

    method: str
    members: int
    rate: float
    seconds: tuple[float, ...]
    tx_bytes: float
    date: str
    kernel: str
    torch: str


@dataclass(frozen=True)
class Measured:
    """A case with all its launches."""

    method: str
    members: int
    rate: float
    launches: tuple[Launch, ...]

    @property
    def medians(self) -> list[float]:
        """Seconds per step of each launch."""
        return [statistics.median(launch.seconds) for launch in self.launches]

    @property
    def seconds(self) -> float:
        """Seconds per step."""
        return statistics.median(self.medians)

    @property
    def spread(self) -> float:
        """How much longer the slowest launch took than the fastest."""
        return max(self.medians) / min(self.medians) - 1

    @property
    def tx_bytes(self) -> float:
        """Bytes that a host sent per step."""
        return statistics.median(launch.tx_bytes for launch in self.launches)

    @property
    def complete(self) -> bool:
        """Whether nothing has to be launched any more."""
        launched = len(self.launches)
        return launched > LAUNCHES or (launched == LAUNCHES and self.spread <= AGREE)


def read_cases() -> list[Measured]:
    """Return all cases with what the file has of them."""
    launches: list[Launch] = []
    if STEPS_FILE.exists():
        with STEPS_FILE.open(newline="", encoding="utf-8") as file:
            launches = [_launch(row) for row in csv.DictReader(file)]
    return [
        Measured(
            method,
            members,
            rate,
            tuple(one for one in launches if (one.method, one.members, one.rate) == (method, members, rate)),
        )
        for members in MEMBERS
        for rate in RATES
        for method in STEPS
    ]


def _launch(row: dict[str, str]) -> Launch:
    return Launch(
        row["method"],
        int(row["members"]),
        float(row["rate"]),
        tuple(float(x) for x in row["seconds"].split()),
        float(row["tx_bytes"]),
        row["date"],
        row["kernel"],
        row["torch"],
    )


def profile_file(method: str, members: int) -> Path:
    """Return the file of the computing in a step of a case (see :mod:`simdist.profiles`)."""
    return HERE / "data" / f"profile_{method}_{members}.yaml"


def measure() -> None:
    """Measure what is missing."""
    for members in MEMBERS:
        if not all(profile_file(method, members).exists() for method in STEPS):
            with Hosts(members, max(RATES)) as hosts:
                _write_profiles(hosts)
    for number in range(1, LAUNCHES + 2):
        for case in read_cases():
            if len(case.launches) < number and not case.complete:
                with Hosts(case.members, case.rate) as hosts:
                    _append(_launched(hosts, case.method))


def _launched(hosts: Hosts, method: str) -> Launch:
    found = hosts.launch(HERE / "worker.py", [method, str(STEPS[method]), str(WARMUP)], timeout=180)
    ends = [max(times) for times in zip(*(host["ends"] for host in found), strict=True)]
    if not all(start < end for start, end in pairwise(ends)):
        raise RunError(f"the hosts' clocks disagree: steps of {method} ended at {ends}")
    return Launch(
        method,
        hosts.count,
        hosts.rate_bits,
        tuple(round(end - start, 6) for start, end in pairwise(ends)),
        round(statistics.mean(host["tx_bytes"] for host in found) / STEPS[method], 1),
        datetime.now(timezone.utc).isoformat(timespec="seconds"),
        platform.release(),
        version("torch"),
    )


def _append(launch: Launch) -> None:
    new = not STEPS_FILE.exists()
    with STEPS_FILE.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(field.name for field in fields(Launch))
        row = asdict(launch) | {"seconds": " ".join(map(str, launch.seconds)), "rate": f"{launch.rate:.0f}"}
        writer.writerow(row.values())
    median = statistics.median(launch.seconds)
    print(f"{launch.method} on {launch.members} hosts at {launch.rate / 1e6:g} Mbit/s: {median:.4f} s", flush=True)


def _write_profiles(hosts: Hosts) -> None:
    """Measure how long one host of several computes in a step, all of them on this machine's cores.

    What a hook does to gradients, in the backward pass, goes with the optimizer, as simdist has it.
    """
    crowding = max(1.0, hosts.count / len(os.sched_getaffinity(0)))
    parts: dict[str, dict[str, float]] = {}
    for method in STEPS:
        found = hosts.launch(HERE / "profile_worker.py", [method, str(PROFILE_STEPS), str(WARMUP)])
        parts[method] = {part: crowding * statistics.mean(host[part] for host in found) for part in found[0]}
    for method, seconds in parts.items():
        hook = max(0.0, seconds["backward"] - parts[WITHOUT_HOOK.get(method, method)]["backward"])
        seconds["backward"] -= hook
        seconds["optimizer"] += hook
        text = dump({part: round(x, 6) for part, x in seconds.items()})
        profile_file(method, hosts.count).write_text(text, "utf-8")

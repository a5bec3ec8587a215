"""Measure collectives on throttled links: ``python -m analysis.fidelity.real_links --measure`` (root, 20 min)."""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Collection, Sequence
from itertools import groupby
from pathlib import Path

import torch

from analysis.fidelity.real_links.cases import MEMBERS, RATES, Case, Measurement, all_cases, append, read, replace
from analysis.fidelity.real_links.links import Hosts, burst_bytes, frames_per_piece
from analysis.fidelity.real_links.on_host import Seen

#: spread of repeats above which a case is measured again
STEADY = 0.05

_SCRIPT = Path(__file__).with_name("on_host.py")


def measure(file: Path, members: Collection[int] = MEMBERS, rates: Collection[int] = RATES) -> None:
    """Measure the cases with these members and rates that the file does not hold yet, and add them to it.

    Raises:
        InputError: where there can be no throttled links (see :class:`Hosts`).
        RunError: when a process fails or hangs.
    """
    known = {found.case for found in read(file)}
    wanted = [case for case in all_cases() if case.members in members and case.rate_bits in rates and case not in known]
    for (count, rate), group in groupby(wanted, key=lambda case: (case.members, case.rate_bits)):
        cases = list(group)
        append(file, measured(cases))
        print(f"{count} hosts, {rate / 1e6:g} Mbit/s: {len(cases)} cases", flush=True)


def measure_unsteady_again(file: Path) -> None:
    """Measure each case whose repeats differ by more than :data:`STEADY` once more, and keep the steadier one.

    What else the machine does comes and goes. The choice looks at repeats only, never at a prediction.
    """
    known = {found.case: found for found in read(file)}
    unsteady = [case for case in all_cases() if case in known and known[case].spread > STEADY]
    for (count, rate), group in groupby(unsteady, key=lambda case: (case.members, case.rate_bits)):
        second = measured(list(group))
        better = [found for found in second if found.spread < known[found.case].spread]
        replace(file, better)
        print(
            f"{count} hosts, {rate / 1e6:g} Mbit/s: {len(better)} of {len(second)} cases are steadier now", flush=True
        )


def measured(cases: Sequence[Case]) -> list[Measurement]:
    """Measure cases that have their number of hosts and their rate in common, in one go."""
    [(count, rate)] = {(case.members, case.rate_bits) for case in cases}
    orders = json.dumps([(case.op, case.payload_bytes, case.repeats) for case in cases])
    # A repeat may be as slow as twice the ideal link's; starting torch and connecting take the rest.
    timeout = 120 + sum(2 * (case.repeats + 2) * (case.least_seconds + 0.2) for case in cases)
    with Hosts(count, rate) as hosts:
        seen_by_host: list[list[Seen]] = hosts.launch(_SCRIPT, [orders], timeout=timeout)
    return [_merged(case, seen) for case, *seen in zip(cases, *seen_by_host, strict=True)]


def _merged(case: Case, seen: Sequence[Seen]) -> Measurement:
    repeats = range(case.repeats)
    first = [min(host["starts"][repeat] for host in seen) for repeat in repeats]
    last = [max(host["starts"][repeat] for host in seen) for repeat in repeats]
    end = [max(host["ends"][repeat] for host in seen) for repeat in repeats]
    return Measurement(
        case=case,
        seconds=tuple(after - before for after, before in zip(end, last, strict=True)),
        skew=tuple(after - before for after, before in zip(last, first, strict=True)),
        tx_bytes=tuple(round(host["tx_bytes"]) for host in seen),
        cpu_seconds=round(sum(host["cpu_seconds"] for host in seen), 6),
        frames_per_piece=frames_per_piece(case.rate_bits, case.members),
        burst_bytes=burst_bytes(case.rate_bits, case.members),
        date=datetime.date.today().isoformat(),
        kernel=platform.release(),
        torch=torch.__version__,
    )

"""``python -m analysis.fidelity.real_links``: predict the committed measurements and judge; ``--measure`` comes first.

Prints a table and writes ``real_links.csv`` (all cases), ``real_links.png`` to the folder ``data``. Exit
status 1 if a target is missed, 2 where links cannot be throttled. Measuring goes on where it was broken off; to begin
anew, move ``measured.csv`` away.
"""

from __future__ import annotations

import argparse
import csv
import signal
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis.fidelity.real_links.cases import DATA, MEMBERS, OPS, PAYLOADS, RATES, read
from analysis.fidelity.real_links.predict import CALIBRATION, Prediction, predictions
from simdist.errors import SimdistError

#: issue 4: of the seconds and of the bytes, for payloads of ``LARGE`` and more
MEDIAN, WORST, BYTES, LARGE = 0.03, 0.10, 0.015, 256 * 1024
#: of the machine that the committed measurements come from
CORES = 2
MEASURED = DATA / "measured.csv"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m analysis.fidelity.real_links", description=__doc__)
    parser.add_argument("--measure", action="store_true", help="measure what is not measured yet (root)")
    parser.add_argument("--members", type=int, nargs="+", choices=MEMBERS, default=MEMBERS, help="measure only these")
    parser.add_argument(
        "--mbit", type=int, nargs="+", default=[rate // 10**6 for rate in RATES], help="and these rates"
    )
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # end as on Ctrl-C, with everything tidied up
    try:
        if options.measure:
            # torch is needed for measuring only
            from analysis.fidelity.real_links.measure import measure, measure_unsteady_again

            measure(MEASURED, options.members, [mbit * 10**6 for mbit in options.mbit])
            measure_unsteady_again(MEASURED)
        found = predictions(read(MEASURED))
    except SimdistError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    write(found, DATA / "real_links.csv")
    from analysis.fidelity.real_links.figure import draw

    draw(found, DATA / "real_links")
    print("\n".join(table(found)))
    return 1 if print_misses(found) else 0


def table(found: Sequence[Prediction]) -> list[str]:
    """Return a Markdown table of the errors by operation, members, rate and payload."""
    large = [one for one in found if one.measured.case.payload_bytes >= LARGE]
    parts: list[tuple[str, list[Prediction]]] = [("**all, 256 KiB and more**", large)]
    parts += [(op, [one for one in large if one.measured.case.op == op]) for op in OPS]
    parts += [(f"{n} hosts", [one for one in large if one.measured.case.members == n]) for n in MEMBERS]
    parts += [
        (f"{rate // 10**6} Mbit/s", [one for one in large if one.measured.case.rate_bits == rate]) for rate in RATES
    ]
    for low, high in zip(PAYLOADS, (*PAYLOADS[1:], 2**40), strict=True):
        some = [one for one in found if low <= one.measured.case.payload_bytes < high]
        parts.append((f"{low // 1024:,} KiB", some))
    lines = [
        "| cases | number | median error | worst error | within 3 % | bytes: median | worst |",
        "| --- | --: | --: | --: | --: | --: | --: |",
    ]
    return lines + [_row(name, some) for name, some in parts if some]


def _row(name: str, some: Sequence[Prediction]) -> str:
    errors = [abs(one.error) for one in some]
    worst = max(some, key=lambda one: abs(one.error)).error
    close = sum(error <= MEDIAN for error in errors) / len(errors)
    of_bytes = [abs(one.byte_error) for one in some]
    worst_bytes = max(some, key=lambda one: abs(one.byte_error)).byte_error
    return (
        f"| {name} | {len(some)} | {statistics.median(errors):.1%} | {worst:+.1%} | {close:.0%} "
        f"| {statistics.median(of_bytes):.2%} | {worst_bytes:+.2%} |"
    )


def print_misses(found: Sequence[Prediction]) -> bool:
    """Say which targets are met and which cases miss; return whether any is missed."""
    large = [one for one in found if one.measured.case.payload_bytes >= LARGE]
    median = statistics.median(abs(one.error) for one in large)
    slow = [one for one in large if abs(one.error) > WORST]
    wrong = [one for one in large if abs(one.byte_error) > BYTES]
    print(f"\ncalibrated on {_name(CALIBRATION)}; everything else is predicted")
    print(f"median error {median:.2%} (target {MEDIAN:.0%}), {len(slow)} of {len(large)} cases beyond {WORST:.0%}:")
    for one in sorted(slow, key=lambda one: -abs(one.error)):
        print(f"  {_name(one.measured.case)}: {one.error:+.1%}")
    print(f"{len(wrong)} cases whose bytes are more than {BYTES:.1%} off:")
    for one in wrong:
        print(f"  {_name(one.measured.case)}: {one.byte_error:+.2%}")
    return median > MEDIAN or bool(slow) or bool(wrong)


def _name(case: tuple[str, int, int, int]) -> str:
    op, members, payload, rate = case
    return f"{op} of {payload / 1024:,.0f} KiB between {members} hosts at {rate // 10**6} Mbit/s"


def write(found: Sequence[Prediction], file: Path) -> None:
    """Write all cases with their errors as CSV."""
    with file.open("w", newline="", encoding="ascii") as text:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(
            ("op", "members", "payload_bytes", "rate_bits", "measured_seconds", "spread", "simulated_seconds", "error",
             "measured_frame_bytes", "simulated_frame_bytes", "byte_error", "processor_share")
        )  # fmt: skip
        for one in sorted(found, key=lambda one: one.measured.case):
            measured = one.measured
            writer.writerow(
                (*measured.case, f"{one.measured_seconds:.6f}", f"{measured.spread:.4f}", f"{one.seconds:.6f}",
                 f"{one.error:.4f}", sum(measured.tx_bytes), round(sum(one.frame_bytes)), f"{one.byte_error:.5f}",
                 f"{measured.cpu_seconds / one.measured_seconds / CORES:.3f}")
            )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())

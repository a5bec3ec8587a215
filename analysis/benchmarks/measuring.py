"""Taking samples: each in a fresh process, the sides of a case in turns, so that a noisy moment meets all of them."""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from analysis.benchmarks.case import ROOT, Case, Question, Round, Sample, Side

PACKAGES = ("simdist", "torch", "numpy", "ray", "pyarrow")
#: where a side finds the instant of its own start, on the clock that all processes of a machine share
STARTED = "BENCHMARK_STARTED"


class SideFailed(Exception):
    """A side did not end well, or did other work than its peers; the message says how."""


class Sampler:
    """Takes samples of sides.

    Args:
        threads: torch's threads where a side does not say otherwise.
        tell: is told what is being done.
    """

    def __init__(self, threads: int, tell: Callable[[str], None]) -> None:
        self._threads = threads
        self._tell = tell
        self._tuned: dict[tuple[str, ...], tuple[str, ...]] = {}

    def measure(self, case: Case) -> dict[str, Any]:
        """Measure a case and return its entry of ``results.json``.

        Raises:
            SideFailed: when a side fails, or sides that should agree do not.
        """
        load, began = os.getloadavg(), time.monotonic()
        sides = [self._tune(side, case.limit_seconds) for side in case.sides]
        rounds: list[Round] = []
        for number in range(1, case.rounds + 1):
            found: dict[str, Sample] = {}
            for side, argv in sides:
                self._tell(f"{case.name}, round {number} of {case.rounds}: {side.name}")
                found[side.name] = self._sample(side, argv, case.limit_seconds)
            check_agreement(case, found)
            rounds.append(found)
        return {
            "says": case.says,
            "sides": {side.name: {"says": side.says, "argv": list(argv)} for side, argv in sides},
            "findings": [answered(question, rounds) for question in case.questions],
            "rounds": rounds,
            "details": dict(case.details),
            **stamp(),
            "seconds": round(time.monotonic() - began, 1),
            "load_average_before": load,
            "load_average_after": os.getloadavg(),
        }

    def _tune(self, side: Side, limit: float) -> tuple[Side, tuple[str, ...]]:
        if side.tuned is None:
            return side, side.argv
        if side.tuned not in self._tuned:
            self._tell(f"choosing what suits {side.name} best")
            self._tuned[side.tuned] = tuple(self._sample(side, side.tuned, limit)["arguments"])
        return side, (*side.argv, *self._tuned[side.tuned])

    def _sample(self, side: Side, argv: tuple[str, ...], limit: float) -> Sample:
        threads = side.threads or self._threads
        with tempfile.TemporaryDirectory(prefix="simdist-benchmark-") as scratch:

            def command(python: Path | str, words: tuple[str, ...]) -> list[str]:
                return [str(python), *(word.replace("{scratch}", scratch) for word in words)]

            if side.before is not None:
                run(command(sys.executable, side.before), threads, limit, reports=False)
            return run(command(side.python or sys.executable, argv), threads, limit, side.reports)


def run(command: list[str], threads: int, limit: float, reports: bool) -> Sample:
    """Run one command and return what it printed as JSON, with its wall and CPU seconds.

    Raises:
        SideFailed: when it fails, runs too long or prints no JSON.
    """
    count = str(threads)
    environment = {**os.environ, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "PYTHONUNBUFFERED": "1"}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    environment[STARTED] = repr(began)
    # a session of its own: whatever it started ends with it
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=limit)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                raise SideFailed(f"{' '.join(command)}: not done within {limit:g} s") from None
            raise
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise SideFailed(f"{' '.join(command)}: exit status {process.returncode}\n{err[-3000:]}")
    said: dict[str, Any] = {}
    if reports:
        try:
            said = json.loads(out.strip().splitlines()[-1])
        except (IndexError, ValueError) as error:
            raise SideFailed(f"{' '.join(command)}: its last line is no JSON:\n{out[-3000:]}{err[-3000:]}") from error
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {**said, "wall_seconds": wall, "cpu_seconds": cpu}


def check_agreement(case: Case, found: Round) -> None:
    """Hold the losses of the sides that should agree against each other.

    Raises:
        SideFailed: when they differ: then the sides did not do the same work.
    """
    for first, *others in case.agree:
        for other in others:
            pairs = list(zip(found[first]["losses"], found[other]["losses"], strict=False))
            worst = max(abs(a - b) / abs(a) for a, b in pairs)
            if not worst <= case.tolerance:
                raise SideFailed(
                    f"case {case.name}: the losses of {first!r} and {other!r} differ by {worst:.2g} (allowed: "
                    f"{case.tolerance:g}), so they did not do the same work: {pairs}"
                )


def answered(question: Question, rounds: Iterable[Round]) -> dict[str, Any]:
    """Return a question's answers and whether its target is met (None: it has none)."""
    values = [question.of(found) for found in rounds]
    median = statistics.median(values)
    return {
        "what": question.what,
        "unit": question.unit,
        "values": values,
        "median": median,
        "limit": question.limit,
        "met": None if question.limit is None else median <= question.limit,
        "note": question.note,
    }


def stamp() -> dict[str, Any]:
    """Return when and on what source something was measured."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    found = subprocess.run(git, capture_output=True, text=True, check=False) if shutil.which("git") else None
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "git_revision": found.stdout.strip() if found is not None and found.returncode == 0 else None,
    }


def machine() -> dict[str, Any]:
    """Return what the numbers depend on besides the code."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)
    except OSError:
        model = None
    return {
        "cpus": os.cpu_count(),
        "processor": model or platform.processor() or platform.machine(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {package: metadata.version(package) for package in PACKAGES},
    }

"""What every side prints as its last line."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from typing import Any


def since_start() -> float:
    """Return the seconds since the parent started this process; 0 where nobody did."""
    # the name is analysis.benchmarks.measuring.STARTED, whose module a side need not import
    started = os.environ.get("BENCHMARK_STARTED")
    return 0.0 if started is None else time.monotonic() - float(started)


def peak_rss_bytes() -> int:
    """Return this process's largest resident memory so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def report(**values: Any) -> None:
    """Print the side's numbers, as :class:`analysis.benchmarks.measuring.Sampler` reads them."""
    print(json.dumps(values))

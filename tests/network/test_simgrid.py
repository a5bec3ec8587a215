"""Our times of flows against SimGrid's (Debian's python3-simgrid), where it is installed; a golden case where not."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.fidelity.simgrid.compare import (
    LV08,
    Flow,
    deviations,
    networks,
    play_here,
    play_there,
    random_flows,
    why_not,
)
from simdist.network import Star, drain

GOLDEN: list[Flow] = [{"source": 0, "target": 1, "size": 100_000, "start": 0.0}]

needs_simgrid = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


def golden() -> Star:
    """SimGrid's documented example: 100 kB over 1 Mbit/s and 10 ms, here as a link that both ways share."""
    return Star(bandwidth="1Mbit/s", latency="5ms", duplex="half")


def test_the_golden_case_takes_latency_and_size_over_bandwidth() -> None:
    network = golden().network(2)
    assert drain(network.sharing, [network.route(0, 1)], [100_000]).tolist() == [0.81]


@needs_simgrid
def test_the_golden_case_in_simgrid() -> None:
    """Its plain model says 0.81 s as we do.

    Its default LV08 says 0.996079 s: 13.01 times the latency, 0.97 of the bandwidth, and acknowledgements of 5 % of the
    traffic that share the link.
    """
    network = golden().network(2)
    assert play_there(network, GOLDEN).arrivals[0] == pytest.approx(0.81, rel=1e-12)
    assert play_there(network, GOLDEN, LV08).arrivals[0] == pytest.approx(13.01 * 0.01 + 0.8 * 1.05 / 0.97, rel=1e-9)


@needs_simgrid
@pytest.mark.parametrize("topology", ["star", "two-level", "fat-tree"])
@pytest.mark.parametrize("spread", [0.0, 0.5], ids=["together", "apart"])
def test_random_flows_take_the_times_that_simgrid_gives_them(topology: str, spread: float) -> None:
    """Without latency both share links by max-min fairness: equal far below the 1 % asked for."""
    network = networks(latency=0.0)[topology]
    flows = random_flows(network, 60, spread, seed=3)
    apart = deviations(flows, play_here(network, flows), play_there(network, flows))
    assert np.abs(apart).max() < 1e-9


@needs_simgrid
def test_equal_latencies_shift_all_times_alike() -> None:
    network = networks(latency=1e-4)["star"]
    flows = random_flows(network, 60, 0.0, seed=3)
    apart = deviations(flows, play_here(network, flows), play_there(network, flows))
    assert np.abs(apart).max() < 1e-9

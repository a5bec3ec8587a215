"""Paced runs: wall time follows simulated time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simdist.communication.plans import Ring
from simdist.communication.trace import CollectiveOp, ComputeOp, SleepOp, StepOps
from simdist.execution.clock import LockstepClock
from simdist.execution.compute_model import ComputeModel
from simdist.execution.pacing import Pacer
from simdist.execution.pricing import StepPricer
from simdist.network import Star
from simdist.running import run
from simdist.scenario import Scenario

GATHER = CollectiveOp("all_gather", "shards", "param_gather", "w", "fp32", 10**6)
STEP: StepOps = ((ComputeOp(1e9),), (GATHER,), (SleepOp(0.25), ComputeOp(2e9)))
SHORT: StepOps = ((GATHER,),)


class FakeTime:
    """A clock that moves by sleeping, and by ``slow`` seconds of real work before every wave."""

    def __init__(self, slow: float = 0.0) -> None:
        self.now = 1000.0
        self.slow = slow
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.slept.append(seconds)
        self.now += seconds

    def play(self, pacer: Pacer, steps: list[StepOps]) -> float:
        """Play steps wave by wave and return the seconds that passed since the end of the first wave's work."""
        self.now += self.slow
        begin = self.now
        for number, step in enumerate(steps):
            for wave in range(len(step)):
                if number or wave:
                    self.now += self.slow
                pacer(step[: wave + 1])
        return self.now - begin


def pricer(speeds: tuple[float, ...] = (1e10, 1e10)) -> StepPricer:
    return StepPricer(Star(bandwidth=1e8, latency=1e-3).network(2), (1, 2), Ring(), ComputeModel.of_speeds(speeds))


def simulated(steps: list[StepOps], speeds: tuple[float, ...] = (1e10, 1e10)) -> float:
    clock = LockstepClock(pricer(speeds))
    return [clock.advance(step).simulated_seconds for step in steps][-1]


@pytest.mark.parametrize("speeds", [(1e10, 1e10), (1e10, 3e9)])
@pytest.mark.parametrize("steps", [[STEP], [STEP] * 4, [SHORT] * 5, [SHORT, STEP, SHORT, SHORT, STEP]])
def test_a_fast_machine_takes_exactly_the_simulated_time(steps: list[StepOps], speeds: tuple[float, ...]) -> None:
    for slow in (0.0, 1e-4):
        time = FakeTime(slow)
        passed = time.play(Pacer(pricer(speeds), time.clock, time.sleep), steps)
        assert passed == pytest.approx(simulated(steps, speeds), rel=1e-9)


def test_every_wave_is_held_to_its_own_end() -> None:
    time = FakeTime()
    time.play(Pacer(pricer(), time.clock, time.sleep), [STEP, STEP])
    # compute 0.1 s; a path of two links and half of 10^6 bytes at 10^8 bit/s; then the longer of sleep and compute
    wave = [0.1, 2e-3 + 0.04, 0.25]
    assert time.slept == pytest.approx(wave * 2, rel=1e-9)


def test_a_slow_machine_falls_behind_and_never_sleeps() -> None:
    time = FakeTime(slow=10.0)
    time.play(Pacer(pricer(), time.clock, time.sleep), [STEP] * 3)
    assert time.slept == pytest.approx([0.1], rel=1e-9), "only the first wave, from whose work on time is measured"


def test_a_hiccup_is_caught_up_with() -> None:
    time, steps = FakeTime(), [STEP] * 3
    pacer = Pacer(pricer(), time.clock, time.sleep)
    begin = time.now
    for number, step in enumerate(steps):
        for wave in range(len(step)):
            time.now += 0.2 if (number, wave) == (1, 1) else 0.0
            pacer(step[: wave + 1])
    assert time.now - begin == pytest.approx(simulated(steps), rel=1e-9)


def test_a_paced_run_takes_the_time_it_simulates(tmp_path: Path) -> None:
    """For real: about three seconds of transfers over slow links."""
    scenario = Scenario.from_dict(
        {
            "steps": 23,
            "workload": {"name": "teacher", "rows": 16, "columns": 16, "matrices": 2, "noise": 0.0},
            "mesh": {"shards": 2},
            "optimizer": {"name": "sgd", "lr": 0.1},
            "network": {"bandwidth": "500kbit/s", "latency": "5ms", "mode": "paced"},
        }
    )
    folder = run(scenario, out=tmp_path / "paced", progress=False)
    summary = json.loads((folder / "summary.json").read_text())
    assert 2 < summary["simulated_seconds"] < 4
    assert summary["wall_seconds"] == pytest.approx(summary["simulated_seconds"], rel=0.1)
    assert summary["wall_seconds"] > summary["simulated_seconds"] - 1e-3

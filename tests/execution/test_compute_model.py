"""Seconds of computing: laws of the roofline, of measured profiles, and of workers that straggle."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simdist.communication.plans import Ring
from simdist.communication.trace import CollectiveOp, ComputeOp, StepOps
from simdist.errors import InputError
from simdist.execution.clock import LockstepClock
from simdist.execution.compute_model import ComputeModel, Profile
from simdist.execution.pricing import StepPricer
from simdist.execution.timeline import Timeline
from simdist.network import Star

PEAKS = st.floats(1e6, 1e15)
AMOUNTS = st.just(0.0) | st.floats(1.0, 1e15)
OPS = st.builds(ComputeOp, AMOUNTS, AMOUNTS)
UNITS = ("root", "block0", "block1")


def model(flops: float = 1e9, memory: float | None = None, profile: Profile | None = None) -> ComputeModel:
    return ComputeModel(flops, (1.0, 1.0), memory, profile)


# -- roofline ------------------------------------------------------------------------------------------------


@given(OPS, PEAKS, PEAKS)
def test_never_faster_than_arithmetic_or_memory_alone(op: ComputeOp, flops: float, memory: float) -> None:
    seconds = model(flops, memory).roofline(op)
    assert seconds == max(model(flops).roofline(op), op.memory_bytes / memory)


@given(OPS, PEAKS, PEAKS, st.floats(1.0, 1e3), st.floats(1.0, 1e3))
def test_higher_peaks_are_never_slower(op: ComputeOp, flops: float, memory: float, more: float, wider: float) -> None:
    assert model(flops * more, memory * wider).roofline(op) <= model(flops, memory).roofline(op)


@given(OPS, PEAKS)
def test_without_a_memory_rate_only_arithmetic_counts(op: ComputeOp, flops: float) -> None:
    assert model(flops).roofline(op) == op.flops / flops


def test_the_ridge_point_by_hand() -> None:
    """1 GFLOP/s and 100 MB/s: below 10 operations a byte memory is what takes time."""
    at = model(1e9, 1e8).roofline
    assert at(ComputeOp(1e9, 1e8)) == 1.0
    assert at(ComputeOp(1e9, 5e7)) == 1.0
    assert at(ComputeOp(1e9, 2e8)) == 2.0


# -- profiles ------------------------------------------------------------------------------------------------


@st.composite
def steps(draw: st.DrawFn) -> StepOps:
    """Forward over all units, backward with compression, some optimizer work: each a wave of its own."""
    waves = [ComputeOp(draw(AMOUNTS), draw(AMOUNTS), "forward", unit) for unit in UNITS]
    for unit in reversed(UNITS):
        waves.append(ComputeOp(draw(AMOUNTS), draw(AMOUNTS), "backward", unit))
        if draw(st.booleans()):
            waves.append(ComputeOp(draw(AMOUNTS), 0.0, "grad_reduce", unit))
    waves += draw(st.lists(st.builds(ComputeOp, AMOUNTS, AMOUNTS, st.just("optimizer")), min_size=1, max_size=4))
    return tuple((op,) for op in waves)


KEYS = [(purpose, unit) for purpose in ("forward", "backward") for unit in (*UNITS, None)] + [("optimizer", None)]
SECONDS = st.just(0.0) | st.floats(1e-9, 1e3)
PROFILES = st.dictionaries(st.sampled_from(KEYS), SECONDS, min_size=1)


def entry_of(op: ComputeOp, profile: Profile) -> tuple[str, str | None] | None:
    """The judge: an operation counts under its unit if that is there, else under the rest of its pass."""
    if op.purpose not in ("forward", "backward"):
        found = [("optimizer", None)]
    else:
        found = [(op.purpose, op.tensor), (op.purpose, None)]
    return next((key for key in found if key in profile), None)


@settings(max_examples=40)
@given(steps(), PROFILES)
def test_what_is_measured_adds_up_and_the_rest_is_roofline(step: StepOps, profile: Profile) -> None:
    compute = model(1e9, 1e8, profile)
    seconds = compute.step_seconds(step)
    total: dict[object, float] = {}
    for (wave, item), found in seconds.items():
        op = step[wave][item]
        assert isinstance(op, ComputeOp)
        key = entry_of(op, profile)
        if key is None:
            assert found == compute.roofline(op)
        else:
            total[key] = total.get(key, 0.0) + found
    assert total == {key: pytest.approx(profile[key], rel=1e-12, abs=0.0) for key in total}


@settings(max_examples=40)
@given(steps(), st.floats(1e-3, 1e3))
def test_a_total_is_shared_in_proportion_to_the_roofline(step: StepOps, measured: float) -> None:
    plain, shared = model(1e9), model(1e9, None, {("forward", None): measured})
    before, after = plain.step_seconds(step), shared.step_seconds(step)
    forward = [place for place in before if step[place[0]][place[1]].purpose == "forward"]
    whole = math.fsum(before[place] for place in forward)
    for place in before:
        if place not in forward:
            assert after[place] == before[place]
        elif whole > 0:
            assert after[place] == pytest.approx(measured * before[place] / whole, rel=1e-12)
        else:
            assert after[place] == pytest.approx(measured / len(forward)), "nothing to go by: equal shares"


@settings(max_examples=40)
@given(steps(), PROFILES)
def test_a_measured_pass_does_not_depend_on_the_device(step: StepOps, profile: Profile) -> None:
    complete = {**dict.fromkeys(KEYS, 1.0), **profile}
    totals = [math.fsum(model(flops, None, complete).step_seconds(step).values()) for flops in (1e6, 1e15)]
    assert totals[0] == pytest.approx(totals[1])


def test_units_that_are_not_there_are_refused_once_all_have_been_seen() -> None:
    named = replace(model(profile={("forward", "blok0"): 1.0}), source="profile.yaml")
    step = tuple((ComputeOp(1.0, 0.0, "forward", unit),) for unit in UNITS)
    named.step_seconds(step[:1])  # a paced run shows its steps wave by wave
    with pytest.raises(InputError, match=r"profile\.yaml, forward\.blok0: got .* block0, block1, root.*mean 'block0'"):
        named.step_seconds((*step, (ComputeOp(1.0, 0.0, "backward", "block1"),)))


# -- stragglers ----------------------------------------------------------------------------------------------

SLOWNESS = st.lists(st.tuples(*[st.floats(0.1, 10.0)] * 3), min_size=1, max_size=5)
FIXED = st.tuples(*[st.floats(0.1, 10.0)] * 3)


def straggling(fixed: tuple[float, ...], slowness: list[tuple[float, ...]]) -> ComputeModel:
    return ComputeModel(1e9, fixed, stragglers=lambda step: slowness[step - 1])


@settings(max_examples=40)
@given(FIXED, SLOWNESS)
def test_a_synchronous_step_takes_as_long_as_its_slowest_worker(
    fixed: tuple[float, ...], slowness: list[tuple[float, ...]]
) -> None:
    """Closed form on a network that takes no time: the sum over steps of the largest slowness, times c."""
    barrier = CollectiveOp("all_reduce", "workers", "grad_reduce", "w", "fp32", 0)
    network = Star(bandwidth=1e9, latency=0.0).network(3)
    clock = LockstepClock(StepPricer(network, (3, 1), Ring(), straggling(fixed, slowness)))
    for step in range(1, len(slowness) + 1):
        now = clock.advance(((ComputeOp(2e9),), (barrier,))).simulated_seconds
        slowest = [max(a * b for a, b in zip(fixed, row, strict=True)) for row in slowness[:step]]
        assert now == pytest.approx(2.0 * math.fsum(slowest), rel=1e-12)


@settings(max_examples=40)
@given(FIXED, SLOWNESS)
def test_without_a_barrier_every_worker_goes_at_its_own_pace(
    fixed: tuple[float, ...], slowness: list[tuple[float, ...]]
) -> None:
    """A worker's k-th computation has the slowness of step k, whatever the others do meanwhile."""
    network = Star(bandwidth=1e9, latency=0.0).network(3)
    clock = Timeline(network, (3, 1), Ring(), straggling(fixed, slowness))
    left = [len(slowness)] * 3
    woken = list(range(3))
    while woken:
        for worker in woken:
            if left[worker]:
                left[worker] -= 1
                clock.submit(worker, (ComputeOp(2e9),))
        woken = [one.worker for one in clock.advance()]
    for worker in range(3):
        expected = 2.0 * math.fsum(fixed[worker] * row[worker] for row in slowness)
        assert clock.clock(worker) == pytest.approx(expected, rel=1e-12)


@given(FIXED, SLOWNESS, st.permutations(range(3)))
def test_permuted_workers_have_permuted_slowness(
    fixed: tuple[float, ...], slowness: list[tuple[float, ...]], order: list[int]
) -> None:
    def permuted(values: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(values[worker] for worker in order)

    here, there = straggling(fixed, slowness), straggling(permuted(fixed), [permuted(row) for row in slowness])
    for step in range(1, len(slowness) + 1):
        assert there.slowness_in(step) == permuted(here.slowness_in(step))

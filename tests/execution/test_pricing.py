"""Prices of lock-step steps: closed forms done by hand, laws, and the closed evaluation against the replay."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simdist.communication.plans import Direct, Plan, Ring
from simdist.communication.plans.plan import OPS
from simdist.communication.trace import CollectiveOp, ComputeOp, SleepOp, StepOps, WaveOps
from simdist.execution.compute_model import ComputeModel
from simdist.execution.events import DIAGNOSTIC
from simdist.execution.pricing import StepPricer, StepTiming
from simdist.execution.replay import Replay
from simdist.network import Star, Topology, TwoLevel

MESHES = [(1, 4), (4, 1), (2, 2), (2, 4)]
TOPOLOGIES = [
    Star(bandwidth=1e8, latency=1e-4),
    TwoLevel(island_size=2, bandwidth=1e8, latency=1e-3),
    TwoLevel(island_size=4, bandwidth=1e7, latency=1e-4),
]


def collective(op: str = "all_reduce", axis: str = "shards", size: int = 1000, tensor: str = "w") -> CollectiveOp:
    return CollectiveOp(op, axis, "optimizer", tensor, "fp32", size)


def pricer(
    topology: Topology,
    mesh: tuple[int, int],
    plan: Plan | None = None,
    speeds: list[float] | None = None,
    *,
    exact: bool = False,
) -> StepPricer:
    count = mesh[0] * mesh[1]
    return StepPricer(
        topology.network(count), mesh, plan or Ring(), ComputeModel.of_speeds(speeds or [1e12] * count), exact=exact
    )


AXES = st.sampled_from(["replicas", "shards", "workers"])
SIZES = st.integers(0, 10**6)
LOCAL = st.one_of(st.builds(ComputeOp, st.floats(0, 1e10)), st.builds(SleepOp, st.floats(0, 1e-2)))


@st.composite
def single_waves(draw: st.DrawFn) -> WaveOps:
    """A wave with one kind of collective, perhaps several fused, and local items around it."""
    op, axis = draw(st.sampled_from(OPS)), draw(AXES)
    fused = [collective(op, axis, size, f"t{i}") for i, size in enumerate(draw(st.lists(SIZES, max_size=3)))]
    return tuple(draw(st.permutations(fused + draw(st.lists(LOCAL, max_size=2)))))


@st.composite
def mixed_waves(draw: st.DrawFn) -> WaveOps:
    """A wave of anything but messages."""
    kinds = st.one_of(LOCAL, st.builds(collective, st.sampled_from(OPS), AXES, SIZES))
    return tuple(draw(st.lists(kinds, max_size=4)))


SINGLE_STEPS = st.lists(single_waves(), min_size=1, max_size=4).map(tuple)
MIXED_STEPS = st.lists(mixed_waves(), min_size=1, max_size=4).map(tuple)


def assert_same(one: StepTiming, other: StepTiming) -> None:
    """All times agree to 1e-12 of the step."""
    near = 1e-12 * max(one.duration, 1e-30)

    def close(a: object, b: object) -> bool:
        if isinstance(a, tuple) and isinstance(b, tuple):
            return len(a) == len(b) and all(map(close, a, b))
        assert isinstance(a, float)
        assert isinstance(b, float)
        return abs(a - b) <= near

    for name in ("duration", "finish", "advance", "lag_after", "waves", "compute_seconds", "hidden_comm_seconds"):
        assert close(getattr(one, name), getattr(other, name)), name
    np.testing.assert_allclose(one.begin, other.begin, rtol=0, atol=near)
    np.testing.assert_allclose(one.end, other.end, rtol=0, atol=near)


# -- closed forms -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("members", [2, 4, 8])
def test_ring_all_reduce_on_a_star(members: int, exact: bool) -> None:
    """2 (n-1) rounds, each one path's latency (two links) and S/n bytes at full rate."""
    size, rate, latency = members * 12345, 1e8, 3e-4
    step = ((collective(size=size),),)
    timing = pricer(Star(bandwidth=rate, latency=latency), (1, members), exact=exact).price(step)
    expected = 2 * (members - 1) * 2 * latency + 2 * (members - 1) / members * 8 * size / rate
    assert timing.duration == pytest.approx(expected, rel=1e-12)
    assert timing.waves == (((0.0, timing.duration),),)


@pytest.mark.parametrize("exact", [False, True])
def test_direct_all_reduce_on_a_star(exact: bool) -> None:
    """Two rounds; each link carries n-1 messages of S/n bytes in each."""
    step = ((collective(size=4000),),)
    timing = pricer(Star(bandwidth=8e6, latency=1e-3), (1, 4), Direct(), exact=exact).price(step)
    assert timing.duration == pytest.approx(2 * (2e-3 + 3 * 1e-3), rel=1e-12)


@pytest.mark.parametrize("exact", [False, True])
def test_replica_groups_across_islands_share_the_uplink(exact: bool) -> None:
    """2 x 4 on islands of 4: four rings of two cross the islands at once, so each has a quarter of the uplink.

    Each of 2 rounds moves S/2 bytes per worker, 4 S/2 per uplink and direction; the path has latency
    2 (island_latency + latency). The shards axis stays within the islands and does not feel the slow links.
    """
    topology = TwoLevel(island_size=4, bandwidth=1e9, latency=1e-3, island_bandwidth=1e11, island_latency=1e-6)
    price = pricer(topology, (2, 4), exact=exact).price
    size = 10**6
    across = price(((collective(axis="replicas", size=size),),))
    assert across.duration == pytest.approx(2 * (2 * (1e-3 + 1e-6) + 8 * (size / 2) / (1e9 / 4)), rel=1e-12)
    within = price(((collective(axis="shards", size=size),),))
    assert within.duration == pytest.approx(6 * (2e-6 + 8 * (size / 4) / 1e11), rel=1e-12)


def test_topology_matters() -> None:
    """The same bytes cost more where groups share a link (astra-sim#207: a simulator once forgot)."""
    step = ((collective(axis="replicas", size=10**6),),)
    star = pricer(Star(bandwidth=1e9, latency=0), (2, 4)).price(step).duration
    islands = pricer(TwoLevel(island_size=4, bandwidth=1e9, latency=0, island_latency=0), (2, 4)).price(step).duration
    assert islands == pytest.approx(4 * star, rel=1e-12)


@pytest.mark.parametrize("exact", [False, True])
def test_a_wave_lasts_as_long_as_its_longest_part(exact: bool) -> None:
    price = pricer(Star(bandwidth=8e6, latency=1e-3), (1, 2), speeds=[1.0, 1.0], exact=exact).price
    timing = price(((ComputeOp(0.004), collective(size=2000), ComputeOp(0.005), SleepOp(0.001)), (SleepOp(1.0),)))
    near = pytest.approx
    assert timing.waves == (
        ((0.0, near(0.004)), (0.0, near(0.006)), (near(0.004), near(0.009)), (0.0, near(0.001))),
        ((near(0.009), near(1.009)),),
    )
    assert timing.duration == near(1.009)
    assert timing.compute_seconds == near(0.009)


@pytest.mark.parametrize("exact", [False, True])
def test_diagnostics_are_free(exact: bool) -> None:
    price = pricer(Star(), (1, 4), exact=exact).price
    free = replace(collective(size=10**9), purpose=DIAGNOSTIC)
    assert price(((free,),)).duration == 0.0
    assert price(((free, collective()),)).duration == price(((collective(),),)).duration


def test_a_step_of_nothing_takes_no_time() -> None:
    for exact in (False, True):
        timing = pricer(Star(), (1, 4), exact=exact).price(())
        assert (timing.duration, timing.lag_after, timing.waves) == (0.0, (0.0,) * 4, ())


# -- the closed evaluation against the replay ---------------------------------------------------------------------


@settings(deadline=None, max_examples=120)
@given(
    step=MIXED_STEPS,
    mesh=st.sampled_from(MESHES),
    topology=st.sampled_from(TOPOLOGIES),
    plan=st.sampled_from([Ring(), Direct()]),
)
def test_the_closed_evaluation_agrees_with_the_replay(
    step: StepOps, mesh: tuple[int, int], topology: Topology, plan: Plan
) -> None:
    assert_same(pricer(topology, mesh, plan).price(step), pricer(topology, mesh, plan, exact=True).price(step))


def test_the_closed_evaluation_is_the_one_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    price = pricer(Star(), (2, 4))
    monkeypatch.setattr(Replay, "run", lambda *_: pytest.fail("a symmetric step was replayed"))
    price.price(((collective(size=1001), ComputeOp(1e9)), (collective(axis="replicas", size=999),)))
    with pytest.raises(BaseException, match="was replayed"):
        pricer(Star(), (2, 4), exact=True).price(((collective(),),))


def test_groups_that_drift_apart_are_replayed() -> None:
    """3 x 2 on islands of 3: workers 0, 1 share an island, as do 4, 5, but 2, 3 do not: they take longer."""
    topology = TwoLevel(island_size=3, bandwidth=1e7, latency=1e-3)
    step = ((collective(axis="shards", size=10**5),), (collective(axis="replicas", size=10**4),))
    timing = pricer(topology, (3, 2)).price(step)
    assert_same(timing, pricer(topology, (3, 2), exact=True).price(step))
    assert timing.end[0, 0] < timing.end[0, 2]


# -- laws ---------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    step=SINGLE_STEPS,
    mesh=st.sampled_from(MESHES),
    rate=st.floats(1e5, 1e9),
    factor=st.floats(1, 100),
    exact=st.booleans(),
)
def test_more_bandwidth_is_never_slower(
    step: StepOps, mesh: tuple[int, int], rate: float, factor: float, exact: bool
) -> None:
    """For one kind of collective per wave. (Several at once may suffer Graham's anomaly, as on a real network.)"""
    slow = pricer(Star(bandwidth=rate), mesh, exact=exact).price(step).duration
    fast = pricer(Star(bandwidth=rate * factor), mesh, exact=exact).price(step).duration
    assert fast <= slow * (1 + 1e-12)


@settings(deadline=None, max_examples=40)
@given(step=SINGLE_STEPS, mesh=st.sampled_from(MESHES))
def test_halving_the_bytes_is_never_slower(step: StepOps, mesh: tuple[int, int]) -> None:
    halved = tuple(
        tuple(replace(op, payload_bytes=op.payload_bytes // 2) if isinstance(op, CollectiveOp) else op for op in wave)
        for wave in step
    )
    price = pricer(Star(bandwidth=1e8), mesh).price
    assert price(halved).duration <= price(step).duration * (1 + 1e-12)


@settings(deadline=None, max_examples=40)
@given(step=MIXED_STEPS, mesh=st.sampled_from(MESHES), factor=st.floats(1e-3, 1e3), exact=st.booleans())
def test_without_latency_and_compute_time_scales_with_the_bandwidth(
    step: StepOps, mesh: tuple[int, int], factor: float, exact: bool
) -> None:
    step = tuple(tuple(op for op in wave if isinstance(op, CollectiveOp)) for wave in step)
    one = pricer(Star(bandwidth=1e8, latency=0), mesh, exact=exact).price(step).duration
    other = pricer(Star(bandwidth=1e8 * factor, latency=0), mesh, exact=exact).price(step).duration
    assert other * factor == pytest.approx(one, rel=1e-11)


@settings(deadline=None, max_examples=40)
@given(step=MIXED_STEPS, mesh=st.sampled_from(MESHES), exact=st.booleans())
def test_infinite_bandwidth_without_latency_leaves_the_time_to_compute(
    step: StepOps, mesh: tuple[int, int], exact: bool
) -> None:
    step = tuple(tuple(op for op in wave if not isinstance(op, SleepOp)) for wave in step)
    timing = pricer(Star(bandwidth=1e30, latency=0), mesh, exact=exact).price(step)
    flops = sum(op.flops for wave in step for op in wave if isinstance(op, ComputeOp))
    assert timing.duration == pytest.approx(flops / 1e12, rel=1e-12, abs=1e-20)
    assert timing.compute_seconds == pytest.approx(timing.duration, rel=1e-12, abs=1e-20)


# -- unequal workers ----------------------------------------------------------------------------------------------


def test_a_synchronous_step_takes_as_long_as_its_slowest_worker() -> None:
    speeds = [1e12, 1e12, 0.25e12, 1e12]
    step = ((ComputeOp(1e12),), (collective(axis="workers", size=4000),))
    timing = pricer(Star(bandwidth=8e6, latency=1e-3), (1, 4), speeds=speeds).price(step)
    assert timing.duration == pytest.approx(4.0 + 6 * (2e-3 + 1e-3), rel=1e-12)
    assert timing.lag_after == (0.0,) * 4
    assert timing.compute_seconds == pytest.approx((1 + 1 + 4 + 1) / 4)
    assert timing.end[0].tolist() == [1.0, 1.0, 4.0, 1.0]


def test_lag_carries_over_and_chained_steps_equal_one_long_step() -> None:
    """Replicas that never talk drift apart; pricing step by step gives the times of one long step."""
    speeds = [1.0, 1.0, 0.5, 0.5]
    price = pricer(Star(bandwidth=8e6, latency=1e-3), (2, 2), speeds=speeds).price
    step: StepOps = ((ComputeOp(1.0),), (collective(axis="shards", size=2000),))
    whole = price(step * 3)
    start, lag = 0.0, (0.0,) * 4
    for _ in range(3):
        timing = price(step, lag)
        finish = [start + end for end in timing.finish]
        start, lag = start + timing.advance, timing.lag_after
        assert min(lag) == 0.0
    assert finish == pytest.approx(list(whole.finish), rel=1e-12)
    assert lag == pytest.approx((0, 0, 3.0, 3.0), rel=1e-12)


def test_a_lag_is_made_good_at_the_next_meeting() -> None:
    price = pricer(Star(bandwidth=8e6, latency=1e-3), (1, 2)).price
    timing = price(((collective(size=2000),),), (0.0, 0.5))
    assert timing.finish == pytest.approx((0.506, 0.506), rel=1e-12)
    assert timing.lag_after == (0.0, 0.0)
    assert timing.waves[0][0] == pytest.approx((0.5, 0.506), rel=1e-12)
    assert timing.end[0].tolist() == [timing.duration] * 2


@settings(deadline=None, max_examples=40)
@given(step=MIXED_STEPS, lag=st.floats(0, 1))
def test_a_common_lag_only_shifts_the_step(step: StepOps, lag: float) -> None:
    fast, exact = (pricer(TOPOLOGIES[0], (2, 2), exact=exact) for exact in (False, True))
    assert_same(fast.price(step, (lag,) * 4), exact.price(step, (lag,) * 4))
    assert fast.price(step, (lag,) * 4).duration == pytest.approx(lag + fast.price(step).duration, rel=1e-12)


def test_settled_lags_are_priced_from_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow worker's lag reaches a fixed point to the bit, so a long run replays few steps."""
    speeds = [3e11, 7e11, 1.1e12, 1.3e12]
    price = pricer(TOPOLOGIES[0], (2, 2), speeds=speeds)
    step: StepOps = (
        (ComputeOp(1e9), collective(size=12345)),
        (collective(axis="workers", size=777),),
        (collective(axis="shards", size=999), ComputeOp(3e8)),
    )
    lag: tuple[float, ...] = (0.0,) * 4
    for _ in range(5):
        lag = price.price(step, lag).lag_after
    assert max(lag) > 0
    monkeypatch.setattr(StepPricer, "_price", lambda *_: pytest.fail("priced again"))
    for _ in range(5):
        lag = price.price(step, lag).lag_after


# -- cost ---------------------------------------------------------------------------------------------------------


def test_pricing_is_fast_enough_for_sweeps() -> None:
    """60 waves on 8 workers: well below a second by replay, and hardly anything from memory (bounds are generous)."""
    step: StepOps = tuple(
        (collective("all_gather", size=100_003 + k), collective("all_gather", size=9), ComputeOp(1e9))
        for k in range(60)
    )
    began = time.process_time()
    pricer(Star(), (2, 4), exact=True).price(step)
    assert time.process_time() - began < 1.0
    price = pricer(Star(), (2, 4))
    price.price(step)
    began = time.process_time()
    for _ in range(100):
        price.price(step)
    assert time.process_time() - began < 0.5

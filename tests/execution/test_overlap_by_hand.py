"""Overlap by hand: timelines of FSDP and DDP worked out on paper (docs/time.md), and buckets as PyTorch cuts them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._C._distributed_c10d import _compute_bucket_assignment_by_size as torch_buckets

from simdist.communication.trace import CollectiveOp, ComputeOp, StepOps, WaveOps
from simdist.execution.overlap import DDP, FSDP, NoOverlap, Overlap
from simdist.execution.pricing import StepPricer, StepTiming
from simdist.network import Star, TwoLevel
from tests.execution.recorded_steps import backward_only, recorded
from tests.execution.test_overlap import pricer

#: bytes that a link of :func:`hand_pricer` carries in a second
SECOND = 1000


def hand_pricer(policy: Overlap, mesh: tuple[int, int]) -> StepPricer:
    """Workers of 1 FLOP/s on links of 1000 byte/s without latency.

    Two members take S/2 for a gather or scatter of S bytes, and S for an all-reduce.
    """
    return pricer(policy, mesh, Star(bandwidth=8.0 * SECOND, latency=0), flops_per_second=1.0)


def spans(timing: StepTiming) -> dict[str, object]:
    """Begin and end of each item, by what it says of itself."""
    return {
        f"{op.op if isinstance(op, CollectiveOp) else op.purpose} {op.tensor}": pytest.approx(when, abs=1e-12)
        for ops, times in zip(timing.graph.step, timing.waves, strict=True)
        for op, when in zip(ops, times, strict=True)
        if isinstance(op, (CollectiveOp, ComputeOp))
    }


def fsdp_step(gather: float, seconds: float) -> StepOps:
    """Three units on two shards: gathers and scatters of ``gather`` s, passes of ``seconds``; unit 1 is the root."""

    def shards(op: str, purpose: str, name: str) -> WaveOps:
        return (CollectiveOp(op, "shards", purpose, name, "fp32", int(2 * gather * SECOND)),)

    step: list[WaveOps] = []
    for unit in "123":
        step += [shards("all_gather", "param_gather", f"{unit}"), (ComputeOp(seconds, 0, "forward", unit),)]
    for unit in "321":
        step += [shards("all_gather", "param_gather", f"{unit}'")] if unit != "1" else []
        step += [(ComputeOp(seconds, 0, "backward", unit),), shards("reduce_scatter", "grad_reduce", unit)]
    return tuple(step)


@pytest.mark.parametrize(("gather", "seconds"), [(1, 3), (1, 2), (2, 2), (3, 1), (1, 0), (0, 1)])
def test_fsdp_with_three_units_by_hand(gather: int, seconds: int) -> None:
    """Gathers and scatters of g seconds, passes of c; A gather, F forward, B backward, S scatter.

    Without overlap: 5 gathers, 3 scatters and 6 passes, 8 g + 6 c. With prefetch 1, where c >= g:

        network  A1 A2  A3    A3'   A2'   .  S3    S2    S1
        compute     F1    F2    F3    B3    B2    B1
                 |g |g+c  |g+2c ...                g+6c  2g+6c

    only the first gather and the last scatter are exposed: 2 g + 6 c. Where g >= c the network is never idle: 8 g.
    """
    step = fsdp_step(gather, seconds)
    none, fsdp = (hand_pricer(one, (1, 2)).price(step) for one in (NoOverlap(), FSDP()))
    assert none.duration == pytest.approx(8 * gather + 6 * seconds, rel=1e-12)
    assert fsdp.duration == pytest.approx(max(2 * gather + 6 * seconds, 8 * gather), rel=1e-12)
    assert fsdp.compute_seconds == pytest.approx(6 * seconds, rel=1e-12)
    assert fsdp.hidden_comm_seconds == pytest.approx(8 * gather + 6 * seconds - fsdp.duration, abs=1e-12)


def test_the_timeline_of_fsdp_by_hand() -> None:
    """The example of docs/time.md: g = 1, c = 2."""
    assert spans(hand_pricer(FSDP(), (1, 2)).price(fsdp_step(1, 2))) == {
        "all_gather 1": (0, 1),
        "all_gather 2": (1, 2),
        "forward 1": (1, 3),
        "all_gather 3": (3, 4),
        "forward 2": (3, 5),
        "all_gather 3'": (5, 6),
        "forward 3": (5, 7),
        "all_gather 2'": (7, 8),
        "backward 3": (7, 9),
        "reduce_scatter 3": (9, 10),
        "backward 2": (9, 11),
        "reduce_scatter 2": (11, 12),
        "backward 1": (11, 13),
        "reduce_scatter 1": (13, 14),
    }


def test_more_prefetch_may_be_slower() -> None:
    """A counterexample on 2 x 2: each gather, scatter and pass takes 1 s, each all-reduce 10 s, all of it latency.

    The all-reduces over replicas decide, so the first scatter should go early. Two units ahead, the third gather goes
    before it: the communicator of the shards has A1 A2 A3 S1 instead of A1 A2 S1 A3.
    """
    gather, scatter = (
        CollectiveOp(op, "shards", purpose, "w", "fp32", 2 * SECOND)
        for op, purpose in (("all_gather", "param_gather"), ("reduce_scatter", "grad_reduce"))
    )
    reduce = CollectiveOp("all_reduce", "replicas", "grad_reduce", "w", "fp32", 0)
    step = ((gather,), (ComputeOp(1.0, purpose="backward"),), (scatter,), (reduce,)) * 3
    far = TwoLevel(island_size=2, latency=2.5, island_bandwidth=8.0 * SECOND, island_latency=0)
    times = [pricer(FSDP(prefetch=n), (2, 2), far, flops_per_second=1.0).price(step).duration for n in (0, 1, 2)]
    assert times == pytest.approx([33, 33, 34], rel=1e-12)


def test_the_timeline_of_ddp_by_hand() -> None:
    """The example of docs/time.md: four passes of 1 s, gradients of 1000 bytes each, that is 1 s; buckets 1000, 2000.

    The first unit fills the first bucket, two more the second one, and the last bucket holds what is left:
    reductions [1, 2], [3, 5] and [5, 6], where no overlap takes 8 s.
    """
    step = backward_only([SECOND] * 4)
    assert hand_pricer(NoOverlap(), (2, 1)).price(step).duration == pytest.approx(8)
    timing = hand_pricer(DDP(first_bucket=1000, bucket=2000), (2, 1)).price(step)
    assert spans(timing) == {
        **{f"backward {number}": (number, number + 1) for number in range(4)},
        "all_reduce 0": (1, 2),
        "all_reduce 1": (3, 5),
        "all_reduce 2": (3, 5),
        "all_reduce 3": (5, 6),
    }
    assert (timing.compute_seconds, timing.hidden_comm_seconds) == pytest.approx((4, 2))


def buckets(policy: DDP, step: StepOps) -> list[list[int]]:
    """The units that travel together, by number."""
    return [
        [int(op.tensor) for op in task.ops if isinstance(op, CollectiveOp)]
        for task in policy.graph(step).tasks
        if task.collective is not None
    ]


@settings(max_examples=50)
@given(
    sizes=st.lists(st.integers(1, 64).map(lambda n: 4 * n), min_size=1, max_size=12),
    first=st.integers(1, 300),
    limit=st.integers(1, 600),
)
def test_buckets_are_those_of_pytorch(sizes: list[int], first: int, limit: int) -> None:
    """One parameter per unit, in the order of backward: as DDP rebuilds its buckets after the first step."""
    gradients = [torch.empty(size // 4) for size in sizes]
    expected, _ = torch_buckets(gradients, [first, limit], [False] * len(sizes))
    assert buckets(DDP(first_bucket=first, bucket=limit), backward_only(sizes)) == expected


def test_the_default_buckets_hold_1_and_then_25_mebibytes() -> None:
    mebibyte = 2**20
    assert buckets(DDP(), backward_only([mebibyte, 20 * mebibyte, 4 * mebibyte, 5 * mebibyte, 2])) == [
        [0],
        [1, 2, 3],
        [4],
    ]
    assert buckets(DDP(), backward_only([mebibyte - 4, 8, 26 * mebibyte, 8])) == [[0, 1], [2], [3]]


def test_compressed_gradients_fill_buckets_by_what_travels() -> None:
    """PowerSGD's rounds begin with computing, which has no bytes; its factors count, and so buckets do close early."""
    step = recorded("ddp 4x1 powersgd")
    each, all_in_one = (pricer(DDP(first_bucket=n, bucket=n), (4, 1)).price(step) for n in (1, 2**30))
    assert all_in_one.hidden_comm_seconds == 0 < each.hidden_comm_seconds

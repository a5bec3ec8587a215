"""The rank controller by itself: hand-made column norms, and the authors' formulas in plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from simdist.optimizers.mode_persistence import cleared_shares, matched
from simdist.optimizers.rank_controller import RankController, Ranks, active_columns, effective_rank
from simdist.program.random import normal
from tests.optimizers import judges_adaptive as judges


def ranks_of(*rank: int) -> Ranks:
    whole = torch.tensor(rank)
    return Ranks(whole, whole.double(), torch.zeros(len(rank), dtype=torch.float64))


def flat(count: int, width: int) -> Tensor:
    """Norms whose effective rank is ``count``."""
    return torch.tensor([[1.0] * count + [0.0] * (width - count)], dtype=torch.float64)


@pytest.mark.parametrize("count", [1, 3, 8])
def test_effective_rank_counts_equal_lengths(count: int) -> None:
    """Card 2, test 2, of the estimator."""
    assert float(effective_rank(flat(count, 8), torch.tensor([8]))) == pytest.approx(count, abs=1e-9)
    assert float(effective_rank(7e5 * flat(count, 8), torch.tensor([8]))) == pytest.approx(count, abs=1e-9)


def test_effective_rank_is_the_entropy_of_active_columns_only() -> None:
    lengths = normal((3, 6), 0, "lengths").abs()
    got = effective_rank(lengths, torch.tensor([6, 4, 0]))
    for i, rank in enumerate((6, 4)):
        assert float(got[i]) == pytest.approx(judges.entropy_rank(lengths[i, :rank].tolist()), rel=1e-12)
    assert float(got[2]) == 0, "a dummy"


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_lengths_that_say_nothing_give_the_rank(value: float) -> None:
    assert effective_rank(torch.full((1, 5), value), torch.tensor([4])).tolist() == [pytest.approx(4)]


def test_active_columns_are_the_first() -> None:
    assert active_columns(torch.tensor([[2, 0, 3]]), 3).int().tolist() == [[[1, 1, 0], [0, 0, 0], [1, 1, 1]]]


@pytest.mark.parametrize(
    ("rank", "mean", "settings", "expected"),
    [
        (24, 20, {}, 32),  # 1.5 * 20 = 30, nearest multiple of 8
        (24, 19, {}, 32),  # 28.5, and 28/8 = 3.5 to the even 4
        (24, 13, {}, 16),  # 19.5, and 20/8 = 2.5 to the even 2
        (24, 60, {}, 40),  # 90, cut to 67, to 64, but only 16 up
        (24, 60, {"step_up": None}, 64),  # the nearest multiple to r_cap is below it
        (24, 60, {"step_up": None, "rounding": "up"}, 67),  # the next one is above
        (24, 1e9, {"step_up": None, "rank_multiple": 1}, 67),
        (64, 10, {}, 56),  # 15 -> 16, but only 8 down
        (64, 10, {"step_down": None}, 16),
        (24, 5, {}, 16),  # 8 is below the least
        (8, 5, {"step_up": 2}, 16),  # the least comes before the step
        (24, 17, {"rounding": "up", "step_up": None}, 32),  # 25.5 -> 26 -> 32
        (24, 16, {"rounding": "up"}, 24),  # 24 exactly
        (24, 16.0000000001, {"rounding": "up"}, 24),  # and to rounding
        (24, 2, {"rank_min": 2, "step_down": None}, 8),  # 3 is less than half a multiple, but one there is
        (24, 3.1, {"rank_min": 2, "step_down": None, "rank_multiple": 1}, 5),  # 4.65
    ],
)
def test_next_rank(rank: int, mean: float, settings: dict[str, object], expected: int) -> None:
    controller = RankController(**settings, erank_decay=0.5)
    assert controller.rank_cap((95, 120)) == 67
    # equal lengths have effective rank r, so that the new running mean is just ``mean``
    before = ranks_of(rank)._replace(erank=torch.tensor([2.0 * mean - rank], dtype=torch.float64))
    after = controller.observed(before, 2, 67, flat(rank, 80))
    assert float(after.erank) == pytest.approx(mean, rel=1e-12)
    assert after.rank.tolist() == [expected]


def test_the_mean_starts_as_each_version_says() -> None:
    lengths = flat(2, 10)
    for start, first in (("erank", 2.0), ("rank", 0.9 * 10 + 0.1 * 2)):
        controller = RankController(erank_start=start, rank_min=1)
        one = controller.observed(ranks_of(10), 1, 10, lengths)
        assert float(one.erank) == pytest.approx(first)
        two = controller.observed(one._replace(rank=torch.tensor([10])), 2, 10, flat(6, 10))
        assert float(two.erank) == pytest.approx(0.9 * first + 0.1 * 6)


def test_ranks_change_every_so_many_steps_while_the_mean_goes_on() -> None:
    controller = RankController(rank_min=1, rank_multiple=1, step_up=None, step_down=None, adapt_every=3)
    ranks, seen = ranks_of(10), []
    for step in range(1, 8):
        ranks = controller.observed(ranks, step, 10, flat(2, 10))
        seen.append(int(ranks.rank))
    assert seen == [10, 10, 3, 3, 3, 3, 3]


@pytest.mark.parametrize(
    ("error", "mean", "expected"),
    [
        (0.5, 0.5, 24),  # no more than usual
        (0.5, 0.3, 40),  # more than 1.15 times the mean (0.31 with this one in it): a step up
        (0.07, 0.02, 24),  # more than the mean, but below the target
        (0.03, 0.5, 16),  # below half the target and the mean: a step down
        (0.045, 0.5, 24),  # below the mean only
        (0.03, 0.03, 24),
    ],
)
def test_quality_control_asks_for_a_step(error: float, mean: float, expected: int) -> None:
    controller = RankController(quality_control=True, erank_decay=0.0)
    before = ranks_of(24)._replace(error=torch.tensor([mean], dtype=torch.float64))
    # 1.5 * 16 = 24: by its effective rank the rank stays
    after = controller.observed(before, 5, 67, flat(16, 24), torch.tensor([error], dtype=torch.float64))
    assert after.rank.tolist() == [expected]
    assert float(after.error) == pytest.approx(0.95 * mean + 0.05 * error)
    first = controller.observed(before, 1, 67, flat(16, 24), torch.tensor([error], dtype=torch.float64))
    assert float(first.error) == error, "the first error starts the mean"


@pytest.mark.parametrize(
    "settings", [{}, {"rounding": "up", "step_up": None, "step_down": None}, {"quality_control": 1}]
)
def test_a_long_run_is_that_of_plain_python(settings: dict[str, object]) -> None:
    """Three matrices at once against one at a time, on norms that wander over many orders of magnitude."""
    up, quality = "rounding" in settings, "quality_control" in settings
    controller = RankController(**settings, gamma=1.3, rank_min=4, erank_start="rank" if up else "erank")
    cap, start = 50, (4, 20, 50)
    plain = [
        judges.Controller(r, cap, 1.3, 0.9, up, up, 4, 8, None if up else 16, None if up else 8, quality) for r in start
    ]
    ranks, changes = ranks_of(*start), 0
    for step in range(1, 40):
        decay = normal((3, 1), 1, "decay", step=step).abs() * (1 + math.sin(step / 5))
        lengths = torch.exp(-decay * torch.arange(50)) * normal((3, 50), 1, "s", step=step).abs()
        errors = normal((3,), 1, "error", step=step).abs() * 0.1
        after = controller.observed(ranks, step, cap, lengths, errors if quality else None)
        for i, judge in enumerate(plain):
            r = judge.rank
            assert judge.see(lengths[i, :r].tolist(), float(errors[i])) == int(after.rank[i])
            assert judge.erank == pytest.approx(float(after.erank[i]), rel=1e-12)
        changes += int((after.rank != ranks.rank).sum())
        ranks = after
    assert changes > 8


def test_dummies_keep_rank_zero() -> None:
    after = RankController(quality_control=True).observed(ranks_of(0, 8), 1, 30, torch.zeros(2, 8), torch.zeros(2))
    assert after.rank.tolist() == [0, 16]
    assert after.erank.isfinite().all()


def test_caps() -> None:
    assert RankController().rank_cap((10, 40)) == 7, "0.7 * 10 is 7, not 8"
    assert RankController(rank_max=256, rank_max_fraction=1.0).rank_cap((300, 700)) == 256
    assert RankController(rank_max=256, rank_max_fraction=1.0).rank_cap((20, 700)) == 20
    assert RankController(rank_max_fraction=0.01).rank_cap((5, 5)) == 1


def test_quality_control_without_steps_is_refused() -> None:
    with pytest.raises(ValueError, match=r"quality_control with step_up None.*write step_up=16"):
        RankController(quality_control=True, step_up=None)


def test_modes_are_matched_by_direction_and_sign() -> None:
    before = torch.linalg.qr(normal((12, 5), 0, "U"))[0]
    order, signs = torch.tensor([3, 0, 2, 1]), torch.tensor([1.0, -1.0, -1.0, 1.0]).double()
    noisy = before[:, order] * signs + 0.1 * normal((12, 4), 0, "noise")
    now = torch.cat([noisy, torch.zeros(12, 1)], dim=1)
    match = matched(before[None], now[None], torch.tensor([[True, True, True, True, False]]))
    assert match.source.tolist() == [[3, 0, 2, 1, 4]]
    assert match.sign[0, :4].tolist() == signs.tolist()
    torch.testing.assert_close(match.columns(before[None])[0, :, :4], before[:, order] * signs)


def test_shares_have_the_mean_that_was_asked_for() -> None:
    persistence = torch.tensor([[0.1, -0.1, 0.0, 9.0]], dtype=torch.float64)
    active = torch.tensor([[True, True, True, False]])
    shares = cleared_shares(persistence, active, 0.3, 10.0)[0, :3]
    assert float(shares.mean()) == pytest.approx(0.3)
    raw = torch.sigmoid(10 * persistence[0, :3])
    torch.testing.assert_close(shares, raw * 0.3 / raw.mean())
    strong = cleared_shares(torch.tensor([[1.0, -1.0]]).double(), torch.ones(1, 2) > 0, 0.9, 10.0)
    torch.testing.assert_close(strong, torch.tensor([[0.95, 0.05]]).double())

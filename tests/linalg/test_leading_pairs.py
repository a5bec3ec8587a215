"""Leading singular pairs: what defines them (card 7), and the cases in which they have no direction."""

from __future__ import annotations

import pytest
import torch

from simdist.linalg.leading_pairs import krylov_leading_pairs, leading_pairs, polar
from simdist.linalg.newton_schulz import newton_schulz
from simdist.program.random import normal
from tests.optimizers.judges_muon import krylov_pairs

SHAPES = [(7, 10), (10, 7), (6, 6)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("k", [1, 3, 6])
def test_reaches_the_ky_fan_norm_inside_the_dual_ball(shape: tuple[int, int], k: int) -> None:
    x = normal(shape, 0, "x")
    d, singular = leading_pairs(x, k), torch.linalg.svdvals(x)
    values = torch.linalg.svdvals(d)
    assert float(values[0]) == pytest.approx(1, abs=1e-12)
    assert float(values.sum()) == pytest.approx(k, abs=1e-12)
    assert float((x * d).sum()) == pytest.approx(float(singular[:k].sum()), abs=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_all_pairs_are_the_polar_factor_which_newton_schulz_approximates(shape: tuple[int, int]) -> None:
    x = normal(shape, 0, "x")
    whole = polar(x)
    short = whole @ whole.mT if shape[0] <= shape[1] else whole.mT @ whole
    torch.testing.assert_close(short, torch.eye(min(shape), dtype=x.dtype), rtol=0, atol=1e-12)
    # M = (M W^T) W with M W^T symmetric positive: what makes W the polar factor
    stretch = x @ whole.mT
    torch.testing.assert_close(stretch, stretch.mT, rtol=0, atol=1e-12)
    assert float(torch.linalg.eigvalsh(stretch).min()) > -1e-12
    assert float(torch.linalg.matrix_norm(newton_schulz(x, "polar_express", 9) - whole, 2)) < 0.15


def test_stacks_scales_and_transposes() -> None:
    x = normal((3, 5, 8), 0, "x")
    d = leading_pairs(x, 2)
    for i in range(3):
        torch.testing.assert_close(leading_pairs(x[i], 2), d[i], rtol=0, atol=1e-12)
    for scale in (1e-200, 1e200):
        torch.testing.assert_close(leading_pairs(scale * x, 2), d, rtol=0, atol=1e-12)
    torch.testing.assert_close(leading_pairs(x.mT, 2), d.mT, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel", ["exact", "krylov"])
def test_what_has_no_direction_moves_nothing(kernel: str) -> None:
    x = normal((3, 5, 8), 0, "x")
    x[0] = 0
    x[1] = x[1, :, :2] @ x[1, :2, :]  # rank two
    x[2, 3:] = 0
    start = normal((3, 8, 4), 0, "s")
    d = leading_pairs(x, 4) if kernel == "exact" else krylov_leading_pairs(x, 4, start, 2).pairs
    assert not d[0].any()
    assert float(torch.linalg.svdvals(d[1]).sum()) == pytest.approx(2, abs=1e-12)
    assert not d[2, 3:].any()
    assert float(torch.linalg.svdvals(d[2]).sum()) == pytest.approx(3, abs=1e-12)


@pytest.mark.parametrize("kernel", ["exact", "krylov"])
def test_a_diverged_matrix_gives_nan_and_spares_its_neighbours(kernel: str) -> None:
    x = normal((2, 4, 6), 0, "x")
    x[0, 1, 2] = torch.inf
    start = normal((2, 6, 4), 0, "s")
    d = leading_pairs(x, 2) if kernel == "exact" else krylov_leading_pairs(x, 2, start, 2).pairs
    assert d[0].isnan().all()
    torch.testing.assert_close(d[1], leading_pairs(x[1], 2), rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_krylov_stays_feasible_and_nears_the_optimum_with_iterations(shape: tuple[int, int]) -> None:
    x, start = normal(shape, 0, "x"), normal((20, 3), 0, "s")
    best = float(torch.linalg.svdvals(x)[:2].sum())
    reached = []
    for iterations in range(5):
        d = krylov_leading_pairs(x, 2, start, iterations).pairs
        values = torch.linalg.svdvals(d)
        assert float(values[0]) == pytest.approx(1, abs=1e-12)
        assert float(values.sum()) == pytest.approx(2, abs=1e-12)
        reached.append(float((x * d).sum()) / best)
    assert reached[0] < 0.95
    assert reached == sorted(reached)
    # four blocks of three columns span all twelve dimensions
    assert reached[3] == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
@pytest.mark.parametrize("iterations", [0, 1, 2])
def test_krylov_spans_the_powers_applied_to_the_start(shape: tuple[int, int], iterations: int) -> None:
    """Against plain powers of A A^T, with at most nine of twelve dimensions spanned."""
    x, start = normal(shape, 0, "x"), normal((20, 3), 0, "s")
    got = krylov_leading_pairs(x, 2, start, iterations)
    torch.testing.assert_close(got.pairs, krylov_pairs(x, 2, start, iterations), rtol=0, atol=1e-10)
    # the basis leads with the right singular vectors of the pairs
    long = got.pairs if shape[0] < shape[1] else got.pairs.mT
    torch.testing.assert_close(long @ got.basis[:, :2] @ got.basis[:, :2].mT, long, rtol=0, atol=1e-12)


def test_krylov_survives_extreme_scales_in_single_precision() -> None:
    x, start = normal((5, 8), 0, "x").float(), normal((8, 4), 0, "s").float()
    usual = krylov_leading_pairs(x, 2, start, 2).pairs
    for scale in (1e-30, 1e30):
        torch.testing.assert_close(krylov_leading_pairs(scale * x, 2, start, 2).pairs, usual, rtol=0, atol=1e-4)

"""Newton-Schulz against the SVD's polar factor (card 5)."""

from __future__ import annotations

import pytest
import torch

from simdist.linalg.leading_pairs import polar
from simdist.linalg.newton_schulz import COEFFICIENTS, frobenius_norm, newton_schulz
from simdist.program.random import normal

#: singular values for a Gaussian 256 x 512 after five steps, measured for card 5
RANGES = {"jordan": (0.67, 1.14), "microsoft": (0.97, 1.04), "polar_express": (0.85, 1.15)}


@pytest.mark.parametrize("name", RANGES)
def test_singular_values_end_near_one_along_the_same_vectors(name: str) -> None:
    x = normal((256, 512), 0, "x")
    u, _, vt = torch.linalg.svd(x, full_matrices=False)
    core = u.T @ newton_schulz(x, name) @ vt.T
    low, high = RANGES[name]
    assert low < float(core.diagonal().min())
    assert float(core.diagonal().max()) < high
    assert float((core - core.diagonal().diag()).abs().max()) < 1e-8
    error = torch.linalg.matrix_norm(newton_schulz(x, name) - polar(x), 2)
    assert float(error) < max(1 - low, high - 1)


@pytest.mark.parametrize("name", COEFFICIENTS)
def test_transposes_scales_and_stacks(name: str) -> None:
    x = normal((3, 6, 10), 0, "x")
    whole = newton_schulz(x, name)
    torch.testing.assert_close(newton_schulz(x.mT, name), whole.mT, rtol=0, atol=1e-12)
    torch.testing.assert_close(newton_schulz(1e6 * x, name), whole, rtol=0, atol=1e-5)
    for i in range(3):
        torch.testing.assert_close(newton_schulz(x[i], name), whole[i], rtol=0, atol=1e-12)
    zero = torch.zeros(2, 3, 4)
    assert torch.equal(newton_schulz(zero, name), zero)


def test_padding_rows_and_columns_change_nothing() -> None:
    x = normal((5, 7), 0, "x")
    padded = torch.nn.functional.pad(x, (0, 2, 0, 3))
    result = newton_schulz(padded)
    torch.testing.assert_close(result[:5, :7], newton_schulz(x), rtol=0, atol=1e-12)
    assert not result[5:].any()
    assert not result[:, 7:].any()


def test_bfloat16_iterations_come_back_in_the_dtype_that_went_in() -> None:
    x = normal((16, 24), 0, "x")
    rough, exact = newton_schulz(x, "microsoft", dtype=torch.bfloat16), newton_schulz(x, "microsoft")
    assert rough.dtype == torch.float64
    assert 1e-6 < float((rough - exact).abs().max()) < 0.05


def test_norm_neither_overflows_nor_underflows() -> None:
    for scale in (1e-30, 1.0, 1e30):
        assert float(frobenius_norm(torch.full((4, 4), scale))) == pytest.approx(4 * scale, rel=1e-5)
    assert float(frobenius_norm(torch.zeros(2, 2))) == 0

"""The cosine transform is scipy's orthonormal DCT-II, and undone by its inverse."""

from __future__ import annotations

import pytest
import scipy.fft
import torch

from simdist.linalg.dct import dct, idct


@pytest.mark.parametrize(("shape", "dims"), [((5,), 1), ((3, 8), 1), ((4, 4), 2), ((2, 3, 5), 2), ((2, 1, 1, 7), 2)])
def test_it_is_the_orthonormal_dct(shape: tuple[int, ...], dims: int) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = scipy.fft.dctn(x.numpy(), norm="ortho", axes=tuple(range(-dims, 0)))
    torch.testing.assert_close(dct(x, dims), torch.from_numpy(expected), rtol=0, atol=1e-14)
    torch.testing.assert_close(idct(dct(x, dims), dims), x, rtol=0, atol=1e-14)
    torch.testing.assert_close(dct(x, dims).norm(), x.norm())


def test_float32_round_trip() -> None:
    """Card 9: to 1e-6."""
    x = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(0))
    assert float((idct(dct(x, 2), 2) - x).abs().max()) < 1e-5
    assert float((idct(dct(x, 2), 2) - x).norm() / x.norm()) < 1e-6

"""QR with positive diagonal, and the symmetric factors made from its triangle."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from simdist.linalg.orthonormalize import triangle
from simdist.linalg.positive_qr import interpolated, polar_of, positive_qr
from simdist.program.random import normal

NOISE = 1e-14


def inverse_root(symmetric: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(symmetric)
    return (vectors * values.rsqrt()) @ vectors.T


def test_it_is_a_qr_with_positive_diagonal() -> None:
    w = normal((2, 3, 12, 5), 0, "w")
    q, upper, keep = positive_qr(w, NOISE)
    torch.testing.assert_close(q @ upper, w, rtol=0, atol=1e-13)
    torch.testing.assert_close(q.mT @ q, torch.eye(5, dtype=torch.float64).expand(2, 3, 5, 5))
    assert (upper.diagonal(dim1=-2, dim2=-1) > 0).all()
    assert torch.equal(upper, upper.triu())
    assert keep.all()


def test_it_agrees_with_cholesky_where_columns_are_dependent() -> None:
    """Both leave out the same columns, and neither lets them bear on those after."""
    a, b, c = normal((20, 3), 0, "w").unbind(-1)
    zero = torch.zeros_like(a)
    w = torch.stack([a, 2 * a, b, zero, a - b, c, 1e-17 * b], dim=-1)
    q, upper, keep = positive_qr(w, NOISE)
    factor = triangle(w.mT @ w, 20, NOISE)
    assert keep.squeeze().tolist() == factor.keep.squeeze().tolist() == [True, False, True, False, False, True, False]
    torch.testing.assert_close(q, factor.solve(w), rtol=0, atol=1e-12)
    torch.testing.assert_close(upper, factor.upper, rtol=0, atol=1e-12)
    kept = keep.squeeze()
    torch.testing.assert_close(upper[kept][:, kept], torch.linalg.qr(w[:, kept])[1].abs() * upper[kept][:, kept].sign())
    assert torch.equal(upper[~kept], torch.eye(7, dtype=torch.float64)[~kept])


def test_sound_neighbours_get_the_same_bits() -> None:
    sound, poor = normal((20, 4), 0, "w"), normal((20, 4), 1, "w")
    poor[:, 2] = poor[:, 1]
    both = positive_qr(torch.stack([sound, poor]), NOISE)
    assert torch.equal(both.q[0], positive_qr(sound[None], NOISE).q[0])
    assert both.keep[1].squeeze().tolist() == [True, True, False, True]


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_neither_overflow_nor_underflow(scale: float) -> None:
    w = normal((9, 3), 0, "w").float()
    q, upper, keep = positive_qr(w * scale, 1e-6)
    torch.testing.assert_close(q, positive_qr(w, 1e-6).q, rtol=0, atol=1e-6)
    torch.testing.assert_close(upper / scale, positive_qr(w, 1e-6).upper, rtol=1e-5, atol=1e-5)
    assert keep.all()


def test_zeros_and_what_is_not_a_number_lose_all_columns() -> None:
    w = torch.stack([torch.zeros(6, 3), torch.full((6, 3), torch.nan), torch.ones(6, 3)])
    q, upper, keep = positive_qr(w, 1e-6)
    assert keep.squeeze(-2).tolist() == [[False] * 3, [False] * 3, [True, False, False]]
    assert not q[:2].any()
    assert torch.equal(upper[:2], torch.eye(3, dtype=torch.float64).expand(2, 3, 3))


def test_blocks_share_one_scale_of_noise() -> None:
    """A block that is noise beside another block says nothing, though its own columns are of one length."""
    w = torch.stack([normal((10, 2), 0, "w"), 1e-15 * normal((10, 2), 1, "w")])
    for keep in (
        positive_qr(w, NOISE, blocks=True).keep,
        triangle(w.mT @ w, 10, NOISE, blocks=True).keep,
    ):
        assert keep.squeeze(-2).tolist() == [[True, True], [False, False]]
    assert positive_qr(w, NOISE).keep.all()


def test_polar_of_the_triangle_gives_the_polar_factor() -> None:
    w = normal((3, 12, 4), 0, "w")
    q, upper, _ = positive_qr(w, NOISE)
    u, _, vt = torch.linalg.svd(w, full_matrices=False)
    torch.testing.assert_close(q @ polar_of(upper), u @ vt, rtol=0, atol=1e-12)


@pytest.mark.parametrize("tau", [0.0, 0.3, 1.0])
def test_interpolation_of_the_triangle(tau: float) -> None:
    w = normal((12, 4), 0, "w") * torch.logspace(0, -3, 4, dtype=torch.float64)
    q, upper, _ = positive_qr(w, NOISE)
    gram = w.T @ w
    expected = w @ inverse_root((1 - tau) * gram.diagonal().diag() + tau * gram)
    torch.testing.assert_close(q @ interpolated(upper, tau), expected, rtol=0, atol=1e-9)
    if tau == 1.0:
        torch.testing.assert_close(q @ polar_of(upper), expected, rtol=0, atol=1e-9)


def test_the_loss_that_a_gram_matrix_foretells_is_an_upper_bound_of_what_is_lost() -> None:
    """Gram matrices rounded to single precision: the orthogonality that one pass loses, and the estimate of it."""
    for seed in range(10):
        w = normal((30, 6), seed, "w") @ torch.linalg.qr(normal((6, 6), seed, "v"))[0] * torch.logspace(0, -2, 6)
        w = w @ normal((6, 6), seed, "mix")
        factor = triangle((w.T @ w).float().double(), 30, NOISE)
        q = factor.solve(w)
        lost = float(torch.linalg.matrix_norm(q.T @ q - torch.eye(6), 2))
        assert lost < float(factor.loss) < 1e4 * lost

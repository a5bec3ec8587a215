"""Orthonormal factors: QR of the left side, masked Cholesky of the right."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from simdist.linalg.orthonormalize import orthonormalize, precision_of, triangle
from simdist.program.random import normal


def test_columns_are_orthonormal_and_span_the_same() -> None:
    p = normal((2, 3, 12, 4), 0, "p")
    q = orthonormalize(p)
    torch.testing.assert_close(q.mT @ q, torch.eye(4, dtype=torch.float64).expand(2, 3, 4, 4))
    torch.testing.assert_close(q @ q.mT @ p, p)


def test_zero_matrices_stay_zero_and_others_do_not_notice() -> None:
    p = normal((3, 8, 3), 0, "p")
    p[1] = 0
    q = orthonormalize(p)
    assert not q[1].any()
    assert torch.equal(q[2], orthonormalize(p[2]))


def solved(w: Tensor) -> tuple[Tensor, Tensor]:
    factor = triangle(w.mT @ w, w.shape[-2], noise=1e-14)
    return factor.solve(w), factor.keep


def test_positive_factor_is_signed_householder() -> None:
    w = normal((3, 20, 5), 0, "w")
    q, r = torch.linalg.qr(w)
    q = q * torch.sign(r.diagonal(dim1=-2, dim2=-1)).unsqueeze(-2)
    got, keep = solved(w)
    torch.testing.assert_close(got, q, rtol=0, atol=1e-12)
    assert keep.all()


def test_column_scales_do_not_matter() -> None:
    w = normal((20, 6), 0, "w")
    got, keep = solved(w * torch.logspace(0, -6, 6, dtype=torch.float64))
    torch.testing.assert_close(got, solved(w)[0], rtol=0, atol=1e-10)
    assert keep.all()


def test_dependent_columns_are_left_out_and_the_rest_is_as_without_them() -> None:
    w = normal((20, 3), 0, "w")
    a, b, c = w.unbind(-1)
    zero = torch.zeros_like(a)
    dependent = torch.stack([a, 2 * a, b, zero, a - b, c, 1e-17 * b], dim=-1)
    got, keep = solved(dependent)
    assert keep.squeeze().tolist() == [True, False, True, False, False, True, False]
    kept = got[:, keep.squeeze()]
    torch.testing.assert_close(kept, solved(w)[0], rtol=0, atol=1e-12)
    assert not got[:, ~keep.squeeze()].any()


def test_the_careful_path_gives_sound_neighbours_the_same_bits() -> None:
    sound, poor = normal((20, 4), 0, "w"), normal((20, 4), 1, "w")
    poor[:, 2] = poor[:, 1]
    alone = solved(sound.unsqueeze(0))[0][0]
    both, keep = solved(torch.stack([sound, poor]))
    assert torch.equal(both[0], alone)
    assert keep[1].squeeze().tolist() == [True, True, False, True]


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_gram_matrices_that_overflowed_leave_all_columns_out(value: float) -> None:
    gram = torch.eye(3).repeat(2, 1, 1)
    gram[0, 1, 1] = value
    factor = triangle(gram, 50, noise=1e-14)
    assert not factor.keep[0].any()
    assert factor.keep[1].all()
    assert factor.solve(torch.ones(2, 4, 3)).isfinite().all()


def test_single_precision_gram_matrices_are_judged_by_their_own_noise() -> None:
    """Two columns at an angle of 1e-5 cannot be told apart by a Gram matrix in float32, and can in float64."""
    w = normal((40, 50, 2), 0, "w")
    w[..., 1] = w[..., 0] + 1e-5 * w[..., 1]
    gram = w.mT @ w
    assert triangle(gram, 50, noise=1e-14).keep.all()
    assert triangle(gram.float().double(), 50, noise=1e-14).keep.squeeze(-2).tolist() == [[True, False]] * 40


def test_rounding_never_passes_for_a_direction() -> None:
    """A third column in the span of two others: its pivot is rounding noise of either sign."""
    w = normal((40, 30, 3), 0, "w")
    w[..., 2] = w[..., :2] @ torch.tensor([0.3, -1.7], dtype=torch.float64)
    assert solved(w)[1].squeeze(-2).tolist() == [[True, True, False]] * 40


def test_precision_is_that_of_the_coarsest_format_that_holds_a_matrix() -> None:
    x = normal((1, 4, 4), 0, "x")
    stack = torch.cat([x, x.float().double(), x.bfloat16().double(), torch.zeros(1, 4, 4, dtype=torch.float64)])
    found = precision_of(stack).flatten().tolist()
    assert found == [2.0**-52, 2.0**-23, 2.0**-7, 2.0**-7]

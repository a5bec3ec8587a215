"""The regression's known answers."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from simdist.workloads import Teacher

CPU = torch.device("cpu")


def test_gradient_is_exactly_error_times_a_without_noise() -> None:
    task = Teacher(noise=0.0, rows=7).build(0, torch.float64, CPU)
    params = task.initial()
    grads = torch.func.grad(task.loss)(params, task.batch(0, 0))
    for i in range(2):
        name = f"matrices.{i}"
        a = task.root_a[i] @ task.root_a[i]
        torch.testing.assert_close(grads[name], (params[name] - task.optimum[name]) @ a, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(grads["bias"], params["bias"] - task.optimum["bias"])


def test_loss_and_gradient_vanish_at_the_optimum() -> None:
    task = Teacher(noise=0.0).build(0, torch.float64, CPU)
    grads, loss = torch.func.grad_and_value(task.loss)(task.optimum, task.batch(0, 0))
    assert loss.item() == task.optimal_loss == 0.0
    assert all(not grad.any() for grad in grads.values())


@pytest.mark.parametrize(
    ("spectrum", "expected"),
    [(2.0, [1, 1 / 4, 1 / 9, 1 / 16]), ((3.0, 0.5), [3.0, 0.5, 0.0, 0.0]), (0.0, [1, 1, 1, 1])],
)
def test_spectrum_is_the_chosen_one(spectrum: float | tuple[float, ...], expected: list[float]) -> None:
    task = Teacher(columns=4, spectrum=spectrum).build(0, torch.float64, CPU)
    wanted = torch.tensor(expected, dtype=torch.float64).sort().values
    for root in task.root_a:
        torch.testing.assert_close(torch.linalg.eigvalsh(root @ root), wanted, rtol=1e-9, atol=1e-12)


def test_short_spectrum_makes_gradients_of_that_rank() -> None:
    task = Teacher(noise=0.0, spectrum=(1.0, 1.0, 0.5)).build(0, torch.float64, CPU)
    grad = torch.func.grad(task.loss)(task.initial(), task.batch(0, 0))["matrices.0"]
    assert torch.linalg.matrix_rank(grad, rtol=1e-10).item() == 3


def test_differences_between_workers_cancel_in_pairs() -> None:
    task = Teacher(noise=0.0, heterogeneity=1.0).build(0, torch.float64, CPU)
    params = task.initial()
    a, b, c = (torch.func.grad(task.loss)(params, task.batch(w, 0))["matrices.0"] for w in (0, 1, 2))
    clean = torch.func.grad(task.loss)(params, task.validation[0])["matrices.0"]
    torch.testing.assert_close((a + b) / 2, clean, rtol=1e-10, atol=1e-12)
    assert (a - clean).norm() > 1
    assert not torch.allclose(a, c)


def test_noise_has_the_stated_size() -> None:
    task = Teacher(rows=60, columns=50, noise=0.5, batch=4).build(0, torch.float64, CPU)
    params = task.initial()
    noisy, clean = (
        torch.func.grad(task.loss)(params, batch)["matrices.0"] for batch in (task.batch(0, 0), task.validation[0])
    )
    assert (noisy - clean).std().item() == pytest.approx(0.5 / 2, rel=0.1)


def test_forward_flops_are_those_of_the_product() -> None:
    matrix = Teacher(rows=16, columns=12).build(0, torch.float32, CPU).units[-1]
    assert (matrix.forward_flops, matrix.backward_flops) == (2 * 16 * 12 * 12, 2 * 16 * 12 * 12)


def test_spectrum_longer_than_the_columns_is_refused() -> None:
    with pytest.raises(ValidationError, match="3 eigenvalues for 2 columns"):
        Teacher(columns=2, spectrum=(1.0, 1.0, 1.0))
    with pytest.raises(ValidationError):
        Teacher(spectrum=())
    with pytest.raises(ValidationError):
        Teacher(spectrum=-1.0)

"""The perceptron on digits: data, split and the missing extra."""

from __future__ import annotations

import re
import sys

import pytest
import torch

from simdist.errors import InputError
from simdist.workloads import Digits

CPU = torch.device("cpu")


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(InputError, match=re.escape("pip install 'simdist[digits]'")):
        Digits().build(0, torch.float32, CPU)


def test_batch_larger_than_the_held_out_part_is_refused() -> None:
    with pytest.raises(InputError, match="359 of them held out for validation, with batch 360"):
        Digits(batch=360).build(0, torch.float32, CPU)
    assert len(Digits(batch=359).build(0, torch.float32, CPU).validation) == 1


def test_training_never_draws_a_validation_image() -> None:
    task = Digits(batch=32, validation_batches=11).build(0, torch.float32, CPU)
    held_out = {tuple(image.tolist()) for images, _ in task.validation for image in images}
    drawn = {tuple(image.tolist()) for step in range(40) for image in task.batch(0, step)[0]}
    assert len(held_out) == 352
    assert len(drawn) > 500
    assert not drawn & held_out


def test_flops_equal_the_closed_form() -> None:
    root, block, _ = Digits(hidden=20, depth=2, batch=8).build(0, torch.float32, CPU).units
    assert root.forward_flops == 8 * 2 * (64 * 20 + 20 * 10)
    # no gradient goes back to the pixels
    assert root.backward_flops == 8 * 2 * (64 * 20 + 2 * 20 * 10)
    assert (block.forward_flops, block.backward_flops) == (8 * 2 * 400, 8 * 4 * 400)


def test_fifty_steps_of_gradient_descent_learn_most_digits() -> None:
    task = Digits().build(0, torch.float32, CPU)
    params = task.initial()
    before = task.loss(params, task.validation[0])
    for step in range(50):
        grads = torch.func.grad(task.loss)(params, task.batch(0, step))
        params = {name: value - 0.2 * grads[name] for name, value in params.items()}
    assert task.loss(params, task.validation[0]) < before / 2

"""A multi-layer perceptron on the 1797 hand-written digits (8 x 8 pixels) that come with scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from simdist.errors import InputError
from simdist.program.random import normal
from simdist.settings import NaturalInt, PositiveInt
from simdist.workloads.flops import count_flops
from simdist.workloads.split import Examples
from simdist.workloads.workload import ParamSpec, Task, Unit, Workload, workloads

PIXELS, CLASSES = 64, 10
#: of the images, held out for validation (the same ones for every seed)
VALIDATION_FRACTION = 0.2


@workloads.register("digits")
class Digits(Workload):
    """Perceptron (ReLU) on scikit-learn's hand-written digits; needs the extra simdist[digits].

    The first layer reads pixels and counts as an embedding, the last one is the head; the ``depth`` square layers
    between them are the hidden matrices, one unit each.

    Attributes:
        hidden: width of the hidden layers.
        depth: square layers between the first and the last one.
        batch: images per worker and step.
        validation_batches: fixed batches of ``batch`` images, at most as many as the held-out fifth (359) gives.
    """

    loss_unit: ClassVar[str] = "nats per image"

    name: str = "digits"
    hidden: PositiveInt = 64
    depth: NaturalInt = 2
    batch: PositiveInt = 32
    validation_batches: PositiveInt = 16

    def build(self, seed: int, dtype: torch.dtype, device: torch.device) -> DigitsTask:
        images, labels = _load()
        examples = Examples(
            (images, labels), VALIDATION_FRACTION, self.validation_batches, self.batch, seed, dtype, device
        )
        return DigitsTask(self, examples, seed, dtype, device)


class DigitsTask(Task):
    """The perceptron with its images; a batch is ``(images [batch, 64] in 0..1, labels [batch])``."""

    def __init__(
        self, settings: Digits, examples: Examples, seed: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.settings = settings
        self.units = _units(settings)
        self.data_hash = examples.sha256
        self.samples_per_step = settings.batch
        self.validation: Sequence[tuple[Tensor, ...]] = examples.validation
        self._examples = examples
        self._seed, self._dtype, self._device = seed, dtype, device

    def initial(self) -> dict[str, Tensor]:
        """Weights of std sqrt(2 / fan_in), a tenth of that in the head; biases zero."""
        params = {}
        for spec in (spec for unit in self.units for spec in unit.params):
            if spec.role == "vector":
                values = torch.zeros(spec.shape, dtype=torch.float64)
            else:
                std = math.sqrt(2 / spec.shape[1]) * (0.1 if spec.role == "head" else 1.0)
                values = std * normal(spec.shape, self._seed, f"initial/{spec.name}")
            params[spec.name] = values.to(torch.float32).to(device=self._device, dtype=self._dtype)
        return params

    def batch(self, worker: int, step: int) -> tuple[Tensor, ...]:
        return self._examples.batch(worker, step)

    def loss(self, params: dict[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        """Mean cross entropy of the digit, in nats."""
        x, labels = batch
        for name in ("input", *(f"blocks.{i}" for i in range(self.settings.depth))):
            x = F.relu(F.linear(x, params[f"{name}.weight"], params[f"{name}.bias"]))
        return F.cross_entropy(F.linear(x, params["head.weight"], params["head.bias"]), labels)


def _load() -> tuple[Tensor, Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise InputError(
            "got workload 'digits', but scikit-learn is not installed; "
            "expected the extra 'digits': pip install 'simdist[digits]'"
        ) from error
    data = load_digits()
    return torch.from_numpy(data.data / 16.0), torch.from_numpy(data.target).long()


def _units(settings: Digits) -> tuple[Unit, ...]:
    h, b = settings.hidden, settings.batch

    def flops(rows: int, columns: int, *, to_input: bool) -> tuple[float, float]:
        x = torch.zeros(b, columns, requires_grad=to_input)
        return count_flops(lambda params, x: F.linear(x, params["weight"]), {"weight": (rows, columns)}, x)

    first, last = flops(h, PIXELS, to_input=False), flops(CLASSES, h, to_input=True)
    root = Unit(
        "root",
        (
            ParamSpec("input.weight", (h, PIXELS), "embedding"),
            ParamSpec("input.bias", (h,), "vector"),
            ParamSpec("head.weight", (CLASSES, h), "head"),
            ParamSpec("head.bias", (CLASSES,), "vector"),
        ),
        first[0] + last[0],
        first[1] + last[1],
        root=True,
    )
    block = flops(h, h, to_input=True)
    blocks = (
        Unit(
            f"blocks.{i}",
            (
                ParamSpec(f"blocks.{i}.weight", (h, h), "matrix"),
                ParamSpec(f"blocks.{i}.bias", (h,), "vector"),
            ),
            *block,
        )
        for i in range(settings.depth)
    )
    return (root, *blocks)

"""Matrix regression with a known optimum and a chosen spectrum: the cheap workload of the laws.

For every matrix X (rows x columns) the loss is ½ ||(X - X*) A^½||², where A is symmetric with the chosen
eigenvalues in a random basis. Its gradient (X - X*) A has about that spectrum. A worker's batch adds linear terms
<N, X - X*>: noise that is drawn anew each step, and a fixed difference between workers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from simdist.program.random import normal
from simdist.settings import NaturalFloat, PositiveInt
from simdist.workloads.flops import count_flops
from simdist.workloads.workload import ParamSpec, Task, Unit, Workload, workloads


@workloads.register("teacher")
class Teacher(Workload):
    """Matrix regression with a known optimum and a chosen spectrum (very cheap; for laws about rank).

    Attributes:
        rows: rows of each matrix (fan-out), and length of the bias.
        columns: columns of each matrix (fan-in).
        matrices: how many, each a unit of its own.
        bias: adds one vector parameter, in the root unit (without it there is no root unit).
        spectrum: eigenvalues of A. A number p means 1, 2^-p, 3^-p, ... (0: all ones); a list gives them, and the
            ones that are left out are zero, so that gradients have exactly that rank.
        noise: size of the noise in the gradient: each entry has this standard deviation, over sqrt(batch).
            With noise 0 and heterogeneity 0, gradients are exact.
        heterogeneity: size of the fixed difference between workers' gradients. Workers 2k and 2k + 1 get opposite
            ones, so that with an even number of workers the optimum stays where it is.
        batch: noise samples per worker and step.
    """

    name: str = "teacher"
    rows: PositiveInt = 16
    columns: PositiveInt = 12
    matrices: PositiveInt = 2
    bias: bool = True
    spectrum: NaturalFloat | Annotated[tuple[NaturalFloat, ...], Field(min_length=1)] = 1.0
    noise: NaturalFloat = 0.1
    heterogeneity: NaturalFloat = 0.0
    batch: PositiveInt = 1

    @model_validator(mode="after")
    def _spectrum_fits(self) -> Self:
        if isinstance(self.spectrum, tuple) and len(self.spectrum) > self.columns:
            raise ValueError(
                f"got a spectrum of {len(self.spectrum)} eigenvalues for {self.columns} columns; "
                f"expected at most {self.columns}"
            )
        return self

    def eigenvalues(self) -> Tensor:
        """Return the eigenvalues of A, float64 [columns]."""
        if isinstance(self.spectrum, tuple):
            given = torch.tensor(self.spectrum, dtype=torch.float64)
            return torch.cat((given, torch.zeros(self.columns - len(given), dtype=torch.float64)))
        return torch.arange(1, self.columns + 1, dtype=torch.float64) ** -self.spectrum

    def build(self, seed: int, dtype: torch.dtype, device: torch.device) -> TeacherTask:
        return TeacherTask(self, seed, dtype, device)


class TeacherTask(Task):
    """The regression; a batch is ``(linear, [linear of the bias])``: [batch, matrices, rows, columns], [batch, rows].

    Attributes:
        optimum: the parameters of least loss.
        optimal_loss: the loss there, without noise and heterogeneity.
        root_a: A^½, [matrices, columns, columns].
    """

    optimal_loss: float = 0.0

    def __init__(self, settings: Teacher, seed: int, dtype: torch.dtype, device: torch.device) -> None:
        self.settings = settings
        self._seed, self._dtype, self._device = seed, dtype, device
        self.data_hash = "none (synthetic)"
        self.samples_per_step = settings.batch
        self.units = _units(settings)
        self.optimum = {spec.name: self._draw("optimum", spec) for unit in self.units for spec in unit.params}

        eigenvalues = settings.eigenvalues().sqrt()
        bases = torch.linalg.qr(normal((settings.matrices, *2 * (settings.columns,)), seed, "basis"))[0]
        self.root_a = ((bases * eigenvalues) @ bases.mT).to(device, dtype)

        zeros = tuple(torch.zeros_like(noise) for noise in self.batch(0, 0))
        self.validation: Sequence[tuple[Tensor, ...]] = [zeros]

    def _draw(self, purpose: str, spec: ParamSpec) -> Tensor:
        values = normal(spec.shape, self._seed, f"{purpose}/{spec.name}") / math.sqrt(self.settings.columns)
        return values.to(torch.float32).to(self._device, self._dtype)

    def initial(self) -> dict[str, Tensor]:
        """Normal draws of std 1/sqrt(columns), like the optimum, but others."""
        return {spec.name: self._draw("initial", spec) for unit in self.units for spec in unit.params}

    def batch(self, worker: int, step: int) -> tuple[Tensor, ...]:
        s = self.settings
        shapes = [(s.matrices, s.rows, s.columns), *([(s.rows,)] if s.bias else [])]
        return tuple(self._linear(str(part), shape, worker, step) for part, shape in enumerate(shapes))

    def _linear(self, part: str, shape: tuple[int, ...], worker: int, step: int) -> Tensor:
        s = self.settings
        linear = torch.zeros((s.batch, *shape), dtype=torch.float64)
        if s.noise:
            linear += s.noise * normal((s.batch, *shape), self._seed, f"batch/{part}", worker, step)
        if s.heterogeneity:
            sign = 1 if worker % 2 == 0 else -1
            linear += sign * s.heterogeneity * normal(shape, self._seed, f"heterogeneity/{part}", worker // 2)
        return linear.to(self._device, self._dtype)

    def loss(self, params: dict[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        """½ Σ ||(X - X*) A^½||² + ½ ||b - b*||² + the batch's mean linear term; zero at the optimum."""
        total = torch.zeros((), dtype=self._dtype, device=self._device)
        for i in range(self.settings.matrices):
            error = params[f"matrices.{i}"] - self.optimum[f"matrices.{i}"]
            total = total + (error @ self.root_a[i]).square().sum() / 2 + (batch[0][:, i].mean(0) * error).sum()
        if self.settings.bias:
            error = params["bias"] - self.optimum["bias"]
            total = total + error.square().sum() / 2 + (batch[1].mean(0) * error).sum()
        return total


def _units(settings: Teacher) -> tuple[Unit, ...]:
    shape = (settings.rows, settings.columns)
    a = torch.zeros(settings.columns, settings.columns)
    flops = count_flops(lambda params, a: params["x"] @ a, {"x": shape}, a)
    root = (Unit("root", (ParamSpec("bias", (settings.rows,), "vector"),), 0.0, 0.0, root=True),)
    names = [f"matrices.{i}" for i in range(settings.matrices)]
    matrices = tuple(Unit(name, (ParamSpec(name, shape, "matrix"),), *flops) for name in names)
    return (root if settings.bias else ()) + matrices

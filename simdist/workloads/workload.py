"""What is trained: parameters in FSDP units, batches per worker, a functional loss, and its FLOPs.

A :class:`Workload` is settings; :meth:`Workload.build` reads the data and returns a :class:`Task`, which holds
tensors. The engine knows nothing else of a model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from simdist.registry import Registry
from simdist.settings import Settings

Role = Literal["matrix", "embedding", "head", "vector"]


@dataclass(frozen=True)
class ParamSpec:
    """One parameter: its name, full shape, and the role that decides which update rule it gets.

    ``matrix`` is a hidden 2-D weight (fan_out x fan_in); everything one-dimensional is a ``vector``.
    """

    name: str
    shape: tuple[int, ...]
    role: Role


@dataclass(frozen=True)
class Activations:
    """What the forward pass of a unit leaves for its backward pass, of one worker's batch.

    Attributes:
        numbers: floating-point numbers that autograd saves inside the unit, parameters and its input left out.
        inputs: numbers of its input, which activation checkpointing keeps while it drops the others.
        bytes_besides: of what is saved and has another format: masks, indices.
    """

    numbers: float
    inputs: float
    bytes_besides: float = 0.0

    def times(self, count: float) -> Activations:
        """Return what so many times the batch leaves."""
        return Activations(self.numbers * count, self.inputs * count, self.bytes_besides * count)


@dataclass(frozen=True)
class Unit:
    """Parameters that FSDP gathers together, and the FLOPs of one worker's batch through them.

    Attributes:
        root: the root unit (embedding, final norm, head), which FSDP2 by default keeps gathered until backward.
        forward_flops: per worker and step; the backward pass is booked as ``backward_flops``.
        activations: what a worker keeps between its passes, for plans; None: not known.
    """

    name: str
    params: tuple[ParamSpec, ...]
    forward_flops: float
    backward_flops: float
    root: bool = False
    activations: Activations | None = None


class Task(ABC):
    """A workload with its data loaded, on one device and in one dtype.

    Attributes:
        units: in forward order, the root unit first; every parameter is in exactly one.
        data_hash: sha256 of the training data, for ``environment.json``.
        samples_per_step: examples (for text: bytes) in one worker's batch.
        validation: fixed batches of equal size, the same on every worker.
    """

    units: tuple[Unit, ...]
    data_hash: str
    samples_per_step: int
    validation: Sequence[Any]

    @abstractmethod
    def initial(self) -> dict[str, Tensor]:
        """Return the initial full parameters, the same on every call."""

    @abstractmethod
    def batch(self, worker: int, step: int) -> tuple[Tensor, ...]:
        """Return worker ``worker``'s training batch of step ``step`` (tensors, equal shapes for all workers)."""

    @abstractmethod
    def loss(self, params: dict[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        """Return the mean loss of a batch, a scalar; functional, differentiable, and safe under ``torch.func.vmap``.

        The mean is over examples, so that the loss of several equal batches joined along dimension 0 is the mean
        of their losses.
        """


class Workload(Settings, ABC):
    """Settings of a model, its data and its loss."""

    name: str
    #: unit of the loss, for axis labels
    loss_unit: ClassVar[str] = "loss"

    @abstractmethod
    def build(self, seed: int, dtype: torch.dtype, device: torch.device) -> Task:
        """Load the data and return the task.

        A plan asks for the device ``meta``: it wants units and :meth:`Task.initial` there, and no data.

        Raises:
            InputError: for missing, empty or too short data.
        """


workloads: Registry[type[Workload]] = Registry("workload")

"""Gradient compression with a memory: how the members of one axis bring their gradients together.

A compression replaces the averaging of gradients on one axis of the mesh, under any optimizer: over ``replicas`` in
place of the all-reduce, over ``shards`` in place of FSDP's reduce-scatter. It works tensor by tensor, encodes its
payloads itself (they travel as bytes, and the ledger counts these) and keeps what it left out in a state of its own,
which differs from worker to worker on purpose.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from simdist.errors import InputError
from simdist.program import Axis, Worker
from simdist.registry import Registry
from simdist.settings import Settings


@dataclass(frozen=True)
class Link:
    """One tensor on its way over one axis, as one worker (or a cohort) sees it.

    Attributes:
        axis: the axis, labelled for the ledger.
        worker: the handle, labelled alike.
        name: the parameter.
        shape: this worker's rows of it, (rows, ...).
        scatter: whether each member wants only its own slice of the mean (``shards``) or all of it (``replicas``).
        step: the step, from 1.
        lr: the scheduled learning rate of the parameter's rule.
        real: which numbers of the gradient, as :meth:`flat` lays it out, are no padding; None: all.
    """

    axis: Axis
    worker: Worker
    name: str
    shape: tuple[int, ...]
    scatter: bool
    step: int = 0
    lr: float = 0.0
    real: Tensor | None = None

    @property
    def key(self) -> str:
        """What noise is drawn for (see :class:`simdist.exchange.Channel`, which this is)."""
        return f"compression/{self.axis.name}/{self.name}"

    @property
    def dims(self) -> int:
        """Dimensions of the gradient handed in, without worker axes; if scattered, members' slices stand in front."""
        return len(self.shape) + self.scatter

    @property
    def numel(self) -> int:
        """Numbers in one worker's gradient."""
        return prod(self.shape) * (self.axis.size if self.scatter else 1)

    def flat(self, x: Tensor) -> Tensor:
        """Return the gradient as messages: ``[..., length]``, or ``[..., members, length]`` if scattered."""
        return x.flatten(-len(self.shape))

    def shaped(self, flat: Tensor) -> Tensor:
        """Return messages ``[..., length]`` as rows ``[..., *shape]``."""
        shaped: Tensor = flat.unflatten(-1, self.shape)
        return shaped

    def clean(self, flat: Tensor) -> Tensor:
        """Return messages laid out as :meth:`flat` does, with zeros where the gradient is padding.

        Codecs without a zero (signs), and those that mix numbers (a truncated cosine transform), make something of
        padding; in a memory it would be sent again and again, and count in scales.
        """
        return flat if self.real is None else torch.where(self.real, flat, 0)

    def clean_mean(self, flat: Tensor) -> Tensor:
        """Return what this member gets, ``[..., length]``, with zeros where it is padding."""
        if self.real is None:
            return flat
        mine = self.axis.share(self.real, -2).squeeze(-2) if self.scatter else self.real
        return torch.where(mine, flat, 0)


class Compression(Settings, ABC):
    """A way to average gradients over one axis; its fields are its settings."""

    name: str

    #: the axes that the method is defined for
    axes: ClassVar[tuple[Literal["replicas", "shards"], ...]] = ("replicas", "shards")

    def check(self, axis: str) -> None:
        """Raise InputError when the method is not defined for an axis."""
        if axis not in self.axes:
            raise InputError(
                f"got {self.name!r}, which is defined for {' and '.join(self.axes)} only; expected it under "
                f"compression.{self.axes[0]}, or another method here"
            )

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Return whether a tensor is compressed; the others are averaged as usual.

        Args:
            shape: of what one exchange is about: this worker's (padded) rows over ``replicas``, those of all members
                over ``shards``.
        """
        return True

    @abstractmethod
    def init(self, link: Link, x: Tensor) -> Any:
        """Return the memory before the first step, a NamedTuple of tensors; ``x`` is a gradient of zeros."""

    @abstractmethod
    async def mean(self, x: Tensor, state: Any, link: Link) -> tuple[Tensor, Any]:
        """Return what stands for the mean gradient, and the new memory.

        Args:
            x: this worker's gradient ``[..., *shape]``; scattered ``[..., members, *shape]``, a slice per member.
            state: the memory.
            link: where and when.

        Returns:
            ``[..., *shape]``, the same bits on all members (scattered: this member's slice), and the new state. What
            the mean has in padding rows is dropped; a state keeps its padding zero (:meth:`Link.clean`).
        """

    def memory(self, state: Any, link: Link) -> dict[str, Tensor]:
        """Return what differs between workers on purpose, by name, each flat ``[..., numbers]``, to be audited."""
        return {}


compressions: Registry[type[Compression]] = Registry("gradient compression")

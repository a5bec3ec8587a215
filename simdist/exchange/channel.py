"""Where messages travel, what keys the noise in their encoding, and which of their numbers are real."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from simdist.program import Axis, Worker


class Channel(Protocol):
    """One tensor's way over one axis, as one worker (or a cohort) sees it."""

    @property
    def axis(self) -> Axis:
        """The axis, labelled for the ledger."""

    @property
    def worker(self) -> Worker:
        """The handle."""

    @property
    def key(self) -> str:
        """What noise is drawn for: another key for every tensor and purpose."""

    @property
    def step(self) -> int:
        """The step; noise is drawn anew in each."""

    @property
    def scatter(self) -> bool:
        """Whether each member wants only its own slice of a mean."""

    @property
    def real(self) -> Tensor | None:
        """Which numbers of a message are not always zero, booleans ``[..., length]`` that members share; None: all."""


@dataclass(frozen=True)
class Route:
    """A channel on which everybody wants the whole mean; see :class:`Channel`."""

    axis: Axis
    worker: Worker
    key: str
    step: int
    real: Tensor | None = None
    scatter: bool = False

    def clean(self, message: Tensor) -> Tensor:
        """Return a message with zeros where nothing is real, whatever a codec made of it."""
        return message if self.real is None else torch.where(self.real, message, 0)


def over_replicas(worker: Worker, name: str, part: str, step: int, real: Tensor | None = None) -> Route:
    """Return the channel of a tensor's ``part`` over the replicas; ``worker``'s label says for which purpose."""
    label = worker.mesh.workers.label
    named = worker.labelled(label.purpose, f"{name}:{part}", label.wire)
    return Route(named.mesh.replicas, named, f"{label.purpose}/{name}:{part}", step, real)

"""Where messages travel, and what keys the noise in their encoding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

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


@dataclass(frozen=True)
class Route:
    """A channel that is nothing more; see :class:`Channel`."""

    axis: Axis
    worker: Worker
    key: str
    step: int


def over_replicas(worker: Worker, name: str, part: str, step: int) -> Route:
    """Return the channel of a tensor's ``part`` over the replicas; ``worker``'s label says for which purpose."""
    label = worker.mesh.workers.label
    named = worker.labelled(label.purpose, f"{name}:{part}", label.wire)
    return Route(named.mesh.replicas, named, f"{label.purpose}/{name}:{part}", step)

"""Where messages travel, and what keys the noise in their encoding."""

from __future__ import annotations

from dataclasses import dataclass

from simdist.program import Axis, Worker


@dataclass(frozen=True)
class Channel:
    """One tensor's way over one axis, as one worker (or a cohort) sees it.

    Attributes:
        axis: the axis, labelled for the ledger.
        worker: the handle.
        key: what the noise is drawn for; another one for every tensor and purpose.
        step: the step; noise is drawn anew in each.
    """

    axis: Axis
    worker: Worker
    key: str
    step: int


def over_replicas(worker: Worker, name: str, part: str, step: int) -> Channel:
    """Return the channel of a tensor's ``part`` over the replicas; ``worker`` says for which purpose."""
    label = worker.mesh.workers.label
    named = worker.labelled(label.purpose, f"{name}:{part}", label.wire)
    return Channel(named.mesh.replicas, named, f"{label.purpose}/{name}:{part}", step)

"""Requests without their tensors: what the ledger books and what the clock prices.

A lock-step step is recorded as ``StepOps``, a tuple of waves of these descriptors, the same for every worker.
Pricing it needs no tensor, so a recorded run can be re-timed under any network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class CollectiveOp:
    """One collective on every group of an axis.

    Attributes:
        op: ``all_reduce``, ``all_gather``, ``reduce_scatter``, ``all_to_all`` or ``broadcast``.
        axis: ``replicas``, ``shards`` or ``workers``.
        purpose: ``param_gather``, ``grad_reduce``, ``optimizer``, ``outer_sync``, ...
        tensor: what travels, for people.
        codec: name of the codec that encoded the payload.
        payload_bytes: the full message S of card 0 in encoded bytes: the whole gathered tensor of an all-gather, the
            whole unreduced buffer of a reduction or broadcast, the local buffer of an all-to-all.
        root: the member that a broadcast starts from.
    """

    op: str
    axis: str
    purpose: str
    tensor: str
    codec: str
    payload_bytes: int
    root: int = 0


@dataclass(frozen=True)
class ComputeOp:
    """Busy time of one worker.

    Attributes:
        flops: floating-point operations.
        memory_bytes: what has to be read from and written to the device's memory for them.
        purpose: ``forward``, ``backward``, ``grad_reduce`` (compression), ``optimizer``, ...
        tensor: the FSDP unit or parameter that it is for.
        what: the operation, for people.
    """

    flops: float
    memory_bytes: float = 0.0
    purpose: str = ""
    tensor: str = ""
    what: str = ""


@dataclass(frozen=True)
class SleepOp:
    """Idle simulated seconds."""

    seconds: float


@dataclass(frozen=True)
class SendOp:
    """A point-to-point message; ``wait``: the sender resumes when it has arrived."""

    to: int
    payload_bytes: int
    purpose: str
    tensor: str
    codec: str
    tag: str
    wait: bool


@dataclass(frozen=True)
class ReceiveOp:
    """Waiting for a message; None matches anything."""

    source: int | None
    tag: str | None


WaveOps: TypeAlias = "tuple[CollectiveOp | ComputeOp | SleepOp | SendOp | ReceiveOp, ...]"
StepOps: TypeAlias = "tuple[WaveOps, ...]"

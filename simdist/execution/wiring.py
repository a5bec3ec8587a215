"""Which codec encodes which kind of payload in a run, and the descriptor of what was encoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from simdist.communication.codecs import Codec, codec_named, payload_bytes
from simdist.communication.trace import CollectiveOp, ComputeOp, SleepOp, WaveOps
from simdist.errors import ProgramError
from simdist.program.mesh import Label
from simdist.program.requests import (
    AllGather,
    AllToAll,
    Broadcast,
    Collective,
    Compute,
    Reduce,
    ReduceScatter,
    Request,
    Sleep,
)

COLLECTIVES = (Reduce, AllGather, ReduceScatter, AllToAll, Broadcast)

_OPS: dict[type, str] = {
    Reduce: "all_reduce",
    AllGather: "all_gather",
    ReduceScatter: "reduce_scatter",
    AllToAll: "all_to_all",
    Broadcast: "broadcast",
}


@dataclass(frozen=True)
class Wiring:
    """The codecs of a run by kind of payload (``params``, ``grads``, ``factors``, ``statistics``)."""

    names: Mapping[str, str]

    @classmethod
    def from_names(cls, names: Mapping[str, str]) -> Wiring:
        """Return the wiring of ``wire.*``: kinds of payload to names or import paths of codecs."""
        return cls(dict(names))

    @cached_property
    def codecs(self) -> Mapping[str, Codec]:
        """The codecs themselves. Only names are pickled: a user's class may be unknown in another process."""
        return {kind: codec_named(name) for kind, name in self.names.items()}

    def __getstate__(self) -> dict[str, Any]:
        return {"names": dict(self.names)}

    def codec(self, label: Label) -> Codec | None:
        """Return the codec for a transfer; None for measurements, which travel as they are."""
        return None if label.free else self.codecs[label.wire]


def encode(codec: Codec | None, x: Tensor) -> tuple[Tensor, ...]:
    """Return what travels for ``x``; without a codec (a measurement) the tensor itself."""
    return (x,) if codec is None else codec.encode(x)


def decode(codec: Codec | None, payload: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
    """Return what the receiver of a payload gets: the inverse of :func:`encode`, up to the wire's precision."""
    return payload[0] if codec is None else codec.decode(payload, dtype)


def round_trip(codec: Codec | None, x: Tensor) -> Tensor:
    """Return what becomes of ``x`` on its way."""
    return x if codec is None else codec.round_trip(x)


def describe(request: Collective, codec: Codec | None, size: int) -> CollectiveOp | None:
    """Return the ledger's view of a collective whose full message is ``size`` bytes; None for measurements."""
    if codec is None:
        return None
    root = request.root if isinstance(request, Broadcast) else 0
    label = request.label
    return CollectiveOp(_OPS[type(request)], request.axis.name, label.purpose, label.tensor, codec.name, size, root)


def describe_free(request: Collective) -> CollectiveOp:
    """Return the descriptor of a measurement: it makes workers meet, but has no bytes and takes no time."""
    root = request.root if isinstance(request, Broadcast) else 0
    label = request.label
    return CollectiveOp(_OPS[type(request)], request.axis.name, label.purpose, label.tensor, "none", 0, root)


def describe_local(request: Request) -> ComputeOp | SleepOp:
    """Return the descriptor of a request that concerns its worker alone."""
    if isinstance(request, Compute):
        return ComputeOp(request.flops)
    if isinstance(request, Sleep):
        return SleepOp(request.seconds)
    raise ProgramError(
        f"a lock-step program asked for {type(request).__name__}; expected collectives, compute and sleep only: "
        "point-to-point messages need a schedule with lockstep = False"
    )


def words(request: Request) -> str:
    """Describe a request in a few words, for messages to people."""
    if isinstance(request, COLLECTIVES):
        shape = tuple(getattr(request.tensor, "shape", ()))
        name = request.label.tensor or "unnamed"
        return f"{_OPS[type(request)]} of {name!r} {shape} on axis {request.axis.name!r} ({request.label.purpose})"
    return type(request).__name__.lower()


__all__ = [
    "COLLECTIVES",
    "WaveOps",
    "Wiring",
    "decode",
    "describe",
    "describe_free",
    "describe_local",
    "encode",
    "payload_bytes",
    "round_trip",
    "words",
]

"""Which codec encodes which kind of payload in a run, and descriptors of what is not encoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from simdist.codecs import Codec, Packed, codec_named
from simdist.communication.trace import CollectiveOp, ComputeOp, SleepOp, WaveOps
from simdist.errors import ProgramError
from simdist.execution.coding import OPS, Coder
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

_PACKED = Packed()


@dataclass(frozen=True)
class Wiring:
    """The codecs of a run by kind of payload (``params``, ``grads``, ``factors``, ``statistics``)."""

    names: Mapping[str, str]
    seed: int = 0

    @classmethod
    def from_names(cls, names: Mapping[str, str], seed: int = 0) -> Wiring:
        """Return the wiring of ``wire.*``: kinds of payload to names or import paths of codecs.

        Args:
            seed: of codecs that round at random.
        """
        return cls(dict(names), seed)

    @cached_property
    def codecs(self) -> Mapping[str, Codec]:
        """The codecs themselves. Only names are pickled: a user's class may be unknown in another process."""
        return {kind: codec_named(name) for kind, name in self.names.items()}

    def __getstate__(self) -> dict[str, Any]:
        return {"names": dict(self.names), "seed": self.seed}

    def codec(self, label: Label) -> Codec | None:
        """Return the codec for a transfer; None for measurements, which travel as they are."""
        if label.free:
            return None
        return _PACKED if label.wire == "packed" else self.codecs[label.wire]

    def coder(self, request: Collective, step: int) -> Coder:
        """Return what encodes and decodes the tensors of a request in a step."""
        return Coder(self.codec(request.label), request, self.seed, step)


def describe_free(request: Collective) -> CollectiveOp:
    """Return the descriptor of a measurement: it makes workers meet, but has no bytes and takes no time."""
    root = request.root if isinstance(request, Broadcast) else 0
    label = request.label
    return CollectiveOp(OPS[type(request)], request.axis.name, label.purpose, label.tensor, "none", 0, root)


def describe_local(request: Request) -> ComputeOp | SleepOp:
    """Return the descriptor of a request that concerns its worker alone."""
    if isinstance(request, Compute):
        label = request.label
        return ComputeOp(request.flops, request.memory_bytes, label.purpose, label.tensor, request.what)
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
        return f"{OPS[type(request)]} of {name!r} {shape} on axis {request.axis.name!r} ({request.label.purpose})"
    return type(request).__name__.lower()


__all__ = ["COLLECTIVES", "WaveOps", "Wiring", "describe_free", "describe_local", "words"]

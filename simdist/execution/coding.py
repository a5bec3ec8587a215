"""How the tensors of one request pass its codec: cut into messages, encoded with keyed noise, put together again.

A tensor here is ``[lead..., own...]``: ``lead`` dimensions count workers (none for one worker's tensor, replicas and
shards for a cohort's), the others are one worker's message. Noise is keyed by (seed, step, what travels, place on the
axis of the collective), hence the same on every engine, for a second gather of the same value in a step, and for the
groups of an axis: replicas that hold the same values send the same payloads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from simdist.codecs import Codec, Noise, Payload, payload_bytes, silent
from simdist.communication.semantics import chunk_length
from simdist.communication.trace import CollectiveOp
from simdist.program.random import stream
from simdist.program.requests import AllGather, AllToAll, Broadcast, Collective, Reduce, ReduceScatter

OPS: dict[type, str] = {
    Reduce: "all_reduce",
    AllGather: "all_gather",
    ReduceScatter: "reduce_scatter",
    AllToAll: "all_to_all",
    Broadcast: "broadcast",
}


@dataclass(frozen=True)
class Members:
    """Whose messages a tensor holds.

    Attributes:
        places: their places on the collective's axis.
        lead: leading dimensions that count workers.
        dim: which of them counts ``places``; along the others are groups, whose members draw the same noise. None:
            the tensor is one member's.
    """

    places: Sequence[int]
    lead: int = 0
    dim: int | None = None


@dataclass(frozen=True)
class Coder:
    """The codec of one request; ``codec`` None (a measurement) leaves tensors as they are."""

    codec: Codec | None
    request: Collective
    seed: int = 0
    step: int = 0

    # -- reductions -------------------------------------------------------------------------------------------------

    def contribution(self, x: Tensor, members: Members) -> tuple[Tensor, int]:
        """Return what a sum receives of every worker, in the sum's dtype, and the bytes of one worker's payload."""
        if self.codec is None:
            return x, _bytes((x,), members)
        dtype = self.codec.sum_dtype(x.dtype)
        x = self._spread(x, members)
        if self.codec.pointwise:
            payload = self.codec.encode(x, silent)
            return self.codec.decode(payload, x.shape[-1] if x.ndim else 1, dtype, silent), _bytes(payload, members)
        rows = self.slices(x, members.lead) if self._sliced else x.unsqueeze(members.lead)
        rows = rows.flatten(members.lead + 1) if rows.ndim > members.lead + 1 else rows.unsqueeze(-1)
        payload = self.codec.encode(rows, self._noise(members))
        value = self.codec.decode(payload, rows.shape[-1], dtype, self._noise(members))
        return self._unrowed(value, x.shape, members.lead), _bytes(payload, members)

    def total(self, x: Tensor, lead: int) -> Tensor:
        """Return what everybody receives of the sum (or mean) of an all-reduce, after its way back."""
        if self.codec is None or self.codec.reduction == "gather":
            return x
        if self.codec.pointwise:
            return self.codec.returned(x)
        if self.codec.reduction == "sum":
            everybody = Members([0], lead)
            flat = x.flatten(lead) if x.ndim > lead else x.unsqueeze(-1)
            return self.codec.returned(flat, lambda: self._noise(everybody)).reshape(x.shape)
        rows = self.slices(x, lead)
        owners = Members(range(rows.shape[lead]), lead + 1, lead)
        return self._unrowed(self.codec.round_trip(rows, lambda: self._noise(owners, "/sum")), x.shape, lead)

    @property
    def reads_numbers_only(self) -> bool:
        """Whether what a sum receives depends on the numbers alone: not on how they are cut, nor on noise."""
        return self.codec is None or (self.codec.pointwise and self.codec.random == "no")

    @property
    def order_shows(self) -> bool:
        """Whether sums are taken in a coarse number format, in which the order of additions is seen."""
        return self.codec is not None and self.codec.sum_dtype(torch.float64) != torch.float64

    @property
    def _sliced(self) -> bool:
        assert self.codec is not None
        return isinstance(self.request, ReduceScatter) or self.codec.reduction == "two_shot"

    def _unrowed(self, rows: Tensor, shape: Sequence[int], lead: int) -> Tensor:
        """Return messages ``[lead..., n, length]`` in the shape that they were cut from."""
        own = torch.Size(shape[lead:])
        if isinstance(self.request, ReduceScatter):
            dim, size = self.request.dim, self.request.axis.size
            at = len(own) + dim
            cut = (*own[:at], own[at] // size, *own[at + 1 :])
            slices = rows.reshape(*rows.shape[: lead + 1], *cut)
            return slices.movedim(lead, dim - 1).flatten(dim - 1, dim)
        flat = rows.flatten(lead).narrow(lead, 0, own.numel())
        return flat.reshape((*flat.shape[:lead], *own))

    # -- messages that are only moved ---------------------------------------------------------------------------------

    def slices(self, x: Tensor, lead: int) -> Tensor:
        """Cut into ``[lead..., members, slice...]``, by destination; an all-reduce is padded to equal slices."""
        size = self.request.axis.size
        if isinstance(self.request, Reduce):
            flat = x.flatten(lead) if x.ndim > lead else x.unsqueeze(-1)
            cut: Tensor = pad(flat, (0, -flat.shape[-1] % size)).unflatten(-1, (size, -1))
            return cut
        assert isinstance(self.request, (ReduceScatter, AllToAll))
        dim = self.request.dim if isinstance(self.request, ReduceScatter) else self.request.split_dim
        dealt: Tensor = x.unflatten(dim, (size, chunk_length(x, dim, size))).movedim(dim - 1, lead)
        return dealt

    def encode(self, x: Tensor, members: Members, slices: int = 0) -> Payload:
        """Return the payload of every worker; the first ``slices`` dimensions after the workers' count messages."""
        if self.codec is None:
            return (x,)
        return encode(self.codec, self._spread(x, members), members.lead + slices, self._noise(members))

    def decode(
        self,
        payload: Payload,
        shape: Sequence[int],
        dtype: torch.dtype,
        members: Members,
        slice_of: int | None = None,
    ) -> Tensor:
        """Return what the receivers get of messages that have the given ``shape`` each.

        Args:
            slice_of: the payload is one slice of several that were encoded together: the one for this destination.
        """
        if self.codec is None:
            return payload[0]
        noise, slices = self._noise(members), self.request.axis.size
        if slice_of is not None:
            whole = noise

            def noise(shape: Sequence[int]) -> Tensor:
                return whole((slices, *shape))[slice_of]

        return decode(self.codec, payload, shape, dtype, noise)

    # -- noise and descriptors ----------------------------------------------------------------------------------------

    def _spread(self, x: Tensor, members: Members) -> Tensor:
        """Members that hold the same value still draw noise of their own, and round in a sum one by one."""
        assert self.codec is not None
        alike = self.codec.random != "own" and self.codec.sum_dtype(x.dtype) == x.dtype
        if members.dim is None or alike:
            return x
        return x.expand(*(len(members.places) if i == members.dim else n for i, n in enumerate(x.shape)))

    def _noise(self, members: Members, what: str = "") -> Noise:
        """Begin the noise of some members' messages."""
        assert self.codec is not None
        if self.codec.random == "no":
            return silent
        own = self.codec.random == "own"
        label, lead = self.request.label, members.lead
        purpose = f"wire/{label.purpose}/{label.tensor}/{label.wire}/{self.request.axis.name}{what}"
        generators = [stream(self.seed, purpose, place, self.step) for place in (members.places if own else [0])]
        dim = members.dim if own else None

        def draw(shape: Sequence[int]) -> Tensor:
            drawn = torch.stack([torch.rand(tuple(shape[lead:]), generator=generator) for generator in generators])
            if dim is None:
                return drawn[0]
            return drawn.reshape(*(len(generators) if i == dim else 1 for i in range(lead)), *shape[lead:])

        return draw

    def ops(self, size: int) -> tuple[CollectiveOp, ...]:
        """Return the ledger's view: the collectives, one after the other, that carry the request out.

        Args:
            size: bytes of the full message (see :class:`simdist.communication.trace.CollectiveOp`).
        """
        codec, request = self.codec, self.request
        if codec is None:
            return ()
        names = [OPS[type(request)]]
        if codec.reduction != "sum" and isinstance(request, ReduceScatter):
            names = ["all_to_all"]
        elif codec.reduction == "two_shot" and isinstance(request, Reduce):
            names = ["all_to_all", "all_gather"]
        elif codec.reduction == "gather" and isinstance(request, Reduce):
            names, size = ["all_gather"], size * request.axis.size
        root = request.root if isinstance(request, Broadcast) else 0
        label = request.label
        shown = label.encoding or codec.label
        return tuple(
            CollectiveOp(name, request.axis.name, label.purpose, label.tensor, shown, size, root) for name in names
        )


def encode(codec: Codec, x: Tensor, lead: int, noise: Noise) -> Payload:
    """Encode messages ``x``, whose first ``lead`` dimensions count them."""
    if codec.pointwise:
        return codec.encode(x, noise)
    return codec.encode(x.flatten(lead) if x.ndim > lead else x.unsqueeze(-1), noise)


def decode(codec: Codec, payload: Payload, shape: Sequence[int], dtype: torch.dtype, noise: Noise) -> Tensor:
    """Decode messages that have the given ``shape`` each; what counted them stands in front."""
    own = torch.Size(shape)
    if codec.pointwise:
        return codec.decode(payload, own.numel(), dtype, noise)
    flat = codec.decode(payload, own.numel(), dtype, noise)
    return flat.reshape((*flat.shape[:-1], *own))


def _bytes(payload: Payload, members: Members) -> int:
    return payload_bytes(payload, payload[0].shape[: members.lead].numel())

"""Sparse messages (card 11): top-k with positions, and random-k, whose positions come from a shared stream."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor
from typing_extensions import Self

from simdist.codecs.bits import pack, unpack
from simdist.codecs.codec import Codec, Noise, Payload, codecs
from simdist.codecs.selection import Chunks, largest
from simdist.settings import PositiveInt, Share

ValueFormat = Literal["fp32", "bf16", "fp16", "fp64"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}


class Sparse(Codec, ABC):
    """Base of the codecs that keep some numbers and drop the others.

    Attributes:
        fraction: share of a message's numbers that is kept, rounded up: ``ceil(fraction length)``, at least 1.
        k: how many are kept, in place of ``fraction``; messages that are shorter are kept whole.
        values: number format of what is kept.
    """

    fraction: Share = 0.01
    k: PositiveInt | None = None
    values: ValueFormat = "fp32"

    @model_validator(mode="after")
    def _one_count(self) -> Self:
        if self.k is not None and "fraction" in self.model_fields_set:
            raise ValueError(f"got both k = {self.k} and fraction = {self.fraction}; expected one of them")
        return self

    def formatted(self, values: Tensor) -> Tensor:
        """Return kept numbers in the format that travels: fp16 saturates, but infinities stay what they are."""
        dtype = _DTYPES[self.values]
        if dtype == torch.float16:
            limit = torch.finfo(dtype).max
            values = torch.where(values.isinf(), values, values.clamp(-limit, limit))
        return values.to(dtype)


@codecs.register("topk")
class TopK(Sparse):
    """The k largest numbers (1 % by default) and where they are, for error feedback (arXiv 1809.07599, 1901.09847).

    Payload of a message: ``kept (b_value + b_position)`` bytes, ``b_position`` = 4 (int32) or 8 (int64); packed
    positions take ``ceil(kept ceil(log2 chunk) / 8)`` in all. Of numbers of equal size the first are kept, so that all
    engines choose alike. ``||C(x) - x||^2 <= (1 - k/d) ||x||^2`` up to the values' rounding.

    Attributes:
        chunk: choose within every ``chunk`` numbers by themselves (``k`` then counts per chunk), with positions in the
            chunk; by default the message is one chunk. A short last chunk keeps the same share, rounded up.
        index: number format of the positions; ``packed``: in as many bits as the chunk needs.
    """

    name: ClassVar[str] = "topk"
    reduction: ClassVar[Literal["sum", "two_shot", "gather"]] = "gather"

    chunk: PositiveInt | None = None
    index: Literal["int32", "int64", "packed"] = "int32"

    @model_validator(mode="after")
    def _within_chunk(self) -> Self:
        if self.k is not None and self.chunk is not None and self.k > self.chunk:
            raise ValueError(f"got k = {self.k} of every chunk of {self.chunk}; expected at most {self.chunk}")
        return self

    def encode(self, x: Tensor, noise: Noise) -> Payload:
        chunks = self._chunks(x.shape[-1])
        values, positions = chunks.largest(x)
        if self.index == "packed":
            return self.formatted(values), pack(positions, chunks.position_bits)
        return self.formatted(values), positions.to(torch.int32 if self.index == "int32" else torch.int64)

    def decode(self, payload: Payload, length: int, dtype: torch.dtype, noise: Noise) -> Tensor:
        chunks = self._chunks(length)
        values, positions = payload
        if self.index == "packed":
            positions = unpack(positions, chunks.position_bits, chunks.total)
        return chunks.placed(values.to(dtype), positions)

    def _chunks(self, length: int) -> Chunks:
        return Chunks.of(length, self.chunk, self.fraction, self.k)


@codecs.register("randk")
class RandomK(Sparse):
    """k numbers at random positions (1 % by default) that all workers draw alike, sent as values (arXiv 1809.07599).

    Payload of a message: ``kept b_value`` bytes. Linear, so sums travel as those of any dense tensor (all-reduce,
    reduce-scatter) of ``kept`` numbers. Positions are drawn anew in every step, for every message. A message that holds
    a NaN or an infinity anywhere is sent as NaN, so that it is seen.

    Attributes:
        rescale: multiply by d/k, which makes it unbiased; without (the default, for error feedback)
            ``E ||C(x) - x||^2 = (1 - k/d) ||x||^2``.
    """

    name: ClassVar[str] = "randk"
    reduction: ClassVar[Literal["sum", "two_shot", "gather"]] = "sum"
    random: ClassVar[Literal["no", "own", "shared"]] = "shared"

    rescale: bool = False

    def encode(self, x: Tensor, noise: Noise) -> Payload:
        length = x.shape[-1]
        positions = self._positions(x.shape, noise, x.device)
        values = x.gather(-1, positions)
        if self.rescale:
            values = values * (length / positions.shape[-1])
        finite = x.isfinite().all(-1, keepdim=True)
        return (self.formatted(torch.where(finite, values, torch.nan)),)

    def decode(self, payload: Payload, length: int, dtype: torch.dtype, noise: Noise) -> Tensor:
        values = payload[0].to(dtype)
        shape = (*values.shape[:-1], length)
        return values.new_zeros(shape).scatter_(-1, self._positions(shape, noise, values.device), values)

    def returned(self, total: Tensor, noise: Callable[[], Noise] | None = None) -> Tensor:
        # zeros stay zeros, and the factor d/k is already in
        return self.formatted(total).to(total.dtype)

    def _positions(self, shape: Sequence[int], noise: Noise, device: torch.device) -> Tensor:
        kept = Chunks.of(shape[-1], None, self.fraction, self.k).total
        # where the largest of as many uniform draws stand is a random subset
        return largest(noise(shape).to(device), kept).expand(*shape[:-1], kept)

"""The wire of SparseLoCo (card 10): the largest numbers of every chunk, in 2 bits each, and where they are."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import AfterValidator, model_validator
from torch import Tensor
from typing_extensions import Self

from simdist.codecs.bits import pack, unpack
from simdist.codecs.codec import Codec, Noise, Payload, codecs
from simdist.codecs.selection import Chunks
from simdist.codecs.sums import tree_sum
from simdist.settings import PositiveInt

#: 2 bits a value, and the number whose bin is around the mean
_BINS = 4
_CENTRE = 2
#: standard deviations that the bins span
_SPAN = 6


def _short(chunk: int) -> int:
    if not 1 <= chunk <= 4096:
        raise ValueError(f"got {chunk}; expected 1 to 4096, as positions have 12 bits")
    return chunk


@codecs.register("sparseloco")
class SparseLoCo(Codec):
    """Top 64 of every 4096 with 12-bit positions and 2-bit values: SparseLoCo's wire (arXiv 2508.15706).

    Payload of a message: ``ceil(12 kept / 8) + ceil(2 kept / 8) + 24`` bytes, the last for six fp32 numbers: mean,
    scale and the means of four bins. The quantiser takes the kept values v of the whole message together:
    ``scale = 6 std / 4`` with the sample standard deviation, ``code = clamp(round((v - mean) / scale + 2), 0, 3)``, and
    the receiver takes ``mean`` plus the mean of that code's bin. (The scale travels as the format has it, though the
    bins suffice.) Use with error feedback.

    Where the paper is silent, or unconfirmed by card 10: n - 1 in the standard deviation, statistics per message (on
    the wire: per tensor, or per slice of a reduce-scatter), and the tail: a short last chunk keeps the same share,
    rounded up. Without 2-bit values it is ``topk(k=64, chunk=4096, index=packed, values=bf16)``.
    """

    name: ClassVar[str] = "sparseloco"
    reduction: ClassVar[Literal["sum", "two_shot", "gather"]] = "gather"

    chunk: Annotated[int, AfterValidator(_short)] = 4096
    k: PositiveInt = 64

    @model_validator(mode="after")
    def _within_chunk(self) -> Self:
        if self.k > self.chunk:
            raise ValueError(f"got k = {self.k} of every chunk of {self.chunk}; expected at most {self.chunk}")
        return self

    def encode(self, x: Tensor, noise: Noise) -> Payload:
        chunks = Chunks.of(x.shape[-1], self.chunk, 1.0, self.k)
        values, positions = chunks.largest(x)
        kept = chunks.total
        mean = (tree_sum(values) / kept).float()
        centred = values.double() - mean.unsqueeze(-1)
        deviation = (tree_sum(centred.square()) / max(1, kept - 1)).sqrt()
        scale = (_SPAN * deviation / _BINS).float()
        divisor = torch.where(scale > 0, scale, 1).double().unsqueeze(-1)
        codes = (centred / divisor + _CENTRE).round().nan_to_num(_CENTRE).clamp(0, _BINS - 1)
        statistics = [mean, scale]
        for code in range(_BINS):
            inside = codes == code
            found = tree_sum(torch.where(inside, centred, 0)) / inside.sum(-1).clamp(min=1)
            statistics.append(found.float())
        return pack(positions, 12), pack(codes, 2), torch.stack(statistics, -1)

    def decode(self, payload: Payload, length: int, dtype: torch.dtype, noise: Noise) -> Tensor:
        chunks = Chunks.of(length, self.chunk, 1.0, self.k)
        positions, codes, statistics = payload
        mean, bins = statistics[..., :1].to(dtype), statistics[..., 2:].to(dtype)
        values = mean + bins.gather(-1, unpack(codes, 2, chunks.total).long())
        return chunks.placed(values, unpack(positions, 12, chunks.total))

"""DeMo (arXiv 2411.19870; bloc97/DeMo) and FlexDeMo (arXiv 2502.06728): fast momentum components only (card 9)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from simdist.codecs.setting import known_codec
from simdist.compression.compression import Compression, Link, compressions
from simdist.exchange import gathered, total
from simdist.linalg.dct import dct, idct
from simdist.settings import Fraction, PositiveInt


class Momentum(NamedTuple):
    """``delta``: momentum that was not sent, of this worker's rows."""

    delta: Tensor


@compressions.register("demo")
class DeMo(Compression):
    """DeMo (arXiv 2411.19870): the largest DCT coefficients of each worker's own momentum; FlexDeMo on shards' rows.

    ``delta <- decay delta + w G``; per chunk the ``k`` largest of its cosine coefficients travel and leave delta;
    coefficients are merged by their mean over the workers that sent them. What stands for the gradient is in units of
    ``w G``; the reference takes its sign: optimizer ``signum`` with momentum 0. Chunks are a x b with a and b the
    largest divisors of the two sides up to ``chunk`` (vectors: length a; more dimensions: all but the first are
    joined). Sent per worker, n members: ``(n - 1) chunks k (b_index + b_value)``; k is at most a chunk's numbers.

    A coefficient that was sent but is exactly zero counts as not sent.

    Attributes:
        weight: w, the learning rate as in the reference's code, or 1 (the same up to the schedule of the rate).
        merge: ``senders``, as the reference; ``all`` divides by the number of workers.
        index: bytes of indices: the reference's ``int64``, ``int32``, or ``packed`` bits.
        values: number format of the coefficients.
    """

    name: str = "demo"
    decay: Fraction = 0.999
    k: PositiveInt = 32
    chunk: PositiveInt = 64
    weight: Literal["lr", "one"] = "lr"
    merge: Literal["senders", "all"] = "senders"
    index: Literal["int64", "int32", "packed"] = "int64"
    values: Literal["fp32", "bf16", "fp16", "fp64"] = "fp32"

    axes: ClassVar[tuple[Literal["replicas", "shards"], ...]] = ("replicas",)

    def init(self, link: Link, x: Tensor) -> Momentum:
        return Momentum(x.clone())

    async def mean(self, x: Tensor, state: Any, link: Link) -> tuple[Tensor, Momentum]:
        delta = self.decay * state.delta + (link.lr if self.weight == "lr" else 1.0) * x
        chunks = self._chunked(delta, link)
        dims = min(2, len(link.shape))
        size = chunks.shape[-dims:].numel()
        codec = known_codec(f"topk(k={min(self.k, size)}, chunk={size}, index={self.index}, values={self.values})")
        # two transforms of each chunk: two products with c x c matrices, forth and back
        await link.worker.compute(4.0 * link.numel * sum(chunks.shape[-dims:]), "dct")
        coefficients = dct(chunks, dims).flatten(-dims)
        messages, own = await gathered(codec, coefficients.flatten(-2), link)
        merged = total(messages)
        count = (messages != 0).sum(-2).clamp(min=1) if self.merge == "senders" else link.axis.size
        merged = (merged / count).unflatten(-1, coefficients.shape[-2:])
        sent = own.unflatten(-1, coefficients.shape[-2:])

        def back(flat: Tensor) -> Tensor:
            return self._unchunked(idct(flat.unflatten(-1, chunks.shape[-dims:]), dims), link)

        left = link.clean(link.flat(delta - back(sent)))
        return back(merged), Momentum(link.shaped(left))

    def _sides(self, link: Link) -> tuple[int, int]:
        """Return the number of rows and the joined columns (1 for vectors)."""
        shape = link.shape
        return shape[0], torch.Size(shape[1:]).numel()

    def _chunked(self, x: Tensor, link: Link) -> Tensor:
        """Cut ``[..., *shape]`` into chunks ``[..., number, c, c]`` (vectors: ``[..., number, c]``)."""
        m, n = self._sides(link)
        a = largest_divisor(m, self.chunk)
        if len(link.shape) == 1:
            vector: Tensor = x.unflatten(-1, (m // a, a))
            return vector
        b = largest_divisor(n, self.chunk)
        matrix = x.flatten(-len(link.shape) + 1) if len(link.shape) > 2 else x
        cut = matrix.unflatten(-1, (n // b, b)).unflatten(-3, (m // a, a))
        chunks: Tensor = cut.transpose(-3, -2).flatten(-4, -3)
        return chunks

    def _unchunked(self, chunks: Tensor, link: Link) -> Tensor:
        m, n = self._sides(link)
        if len(link.shape) == 1:
            return chunks.flatten(-2)
        a, b = chunks.shape[-2:]
        matrix = chunks.unflatten(-3, (m // a, n // b)).transpose(-3, -2).flatten(-4, -3).flatten(-2)
        whole: Tensor = matrix.unflatten(-1, link.shape[1:]) if len(link.shape) > 2 else matrix
        return whole

    def memory(self, state: Any, link: Link) -> dict[str, Tensor]:
        return {"delta": state.delta.flatten(-link.dims)}


def largest_divisor(number: int, limit: int) -> int:
    """Return the largest divisor of a number that is at most ``limit``.

    >>> largest_divisor(768, 64), largest_divisor(97, 64)
    (64, 1)
    """
    return max(d for d in range(1, min(number, limit) + 1) if number % d == 0)

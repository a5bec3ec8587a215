"""Which numbers of a message are kept: how many, the largest of each chunk, and putting them back in place."""

from __future__ import annotations

import fractions
import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Chunks:
    """A message of ``length`` numbers in chunks, of which the last may be shorter, and how many of each are kept.

    Attributes:
        length: numbers of the message.
        chunk: numbers of a whole chunk, at most ``length``.
        kept: numbers kept of a whole chunk.
    """

    length: int
    chunk: int
    kept: int

    @classmethod
    def of(cls, length: int, chunk: int | None, fraction: float, k: int | None) -> Chunks:
        """Return the chunks of a message, keeping ``k`` of each or a fraction (rounded up), but no more than all.

        >>> Chunks.of(30, None, 0.1, None).kept, Chunks.of(30, 10, 0.01, 3).total
        (3, 9)
        """
        size = min(chunk or length, length)
        # as the decimal that was written: 0.1 * 30 is above 3 in floating point
        wanted = math.ceil(fractions.Fraction(str(fraction)) * size) if k is None else k
        if k is not None and chunk is not None and chunk > size:
            wanted = -(-k * size // chunk)
        return cls(length, size, max(1, min(wanted, size)))

    @property
    def whole(self) -> int:
        """How many chunks are whole."""
        return self.length // self.chunk

    @property
    def tail(self) -> int:
        """Numbers in the short last chunk, or 0."""
        return self.length % self.chunk

    @property
    def kept_of_tail(self) -> int:
        """The tail keeps the same share as the whole chunks, rounded up."""
        return -(-self.kept * self.tail // self.chunk)

    @property
    def total(self) -> int:
        """Numbers kept of the whole message."""
        return self.whole * self.kept + self.kept_of_tail

    @property
    def position_bits(self) -> int:
        """Bits that a position in a chunk takes."""
        return (self.chunk - 1).bit_length()

    def largest(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the kept numbers of ``[..., length]`` and their positions in their chunks, both ``[..., total]``."""
        edge = self.whole * self.chunk
        rows = x[..., :edge].unflatten(-1, (self.whole, self.chunk))
        positions = largest(rows, self.kept)
        values = rows.gather(-1, positions)
        if not self.tail:
            return values.flatten(-2), positions.flatten(-2)
        rest = x[..., edge:]
        last = largest(rest, self.kept_of_tail)
        return torch.cat([values.flatten(-2), rest.gather(-1, last)], -1), torch.cat([positions.flatten(-2), last], -1)

    def placed(self, values: Tensor, positions: Tensor) -> Tensor:
        """Return the message ``[..., length]`` that has the kept numbers where they were, and zeros elsewhere."""
        starts = torch.arange(self.whole + 1, device=values.device).repeat_interleave(self.kept) * self.chunk
        x = values.new_zeros(*values.shape[:-1], self.length)
        return x.scatter_(-1, positions.long() + starts[: self.total], values)


def largest(x: Tensor, k: int) -> Tensor:
    """Return the positions ``[..., k]`` of the k largest ``|x|``, in ascending order; of equals the first come first.

    torch.topk breaks ties in an order of its own, which may differ between devices and shapes. NaN counts as infinite.
    """
    if x.is_meta:
        # a plan has shapes only, and torch knows no shape for nonzero()
        return x.new_empty((*x.shape[:-1], k), dtype=torch.int64)
    sizes = x.abs().nan_to_num(torch.inf, torch.inf)
    least = sizes.topk(k, sorted=False).values.amin(-1, keepdim=True)
    above, equal = sizes > least, sizes == least
    missing = k - above.sum(-1, keepdim=True)
    chosen = above | (equal & (equal.cumsum(-1) <= missing))
    return chosen.nonzero()[:, -1].reshape(*x.shape[:-1], k)

"""Values of a cohort that exist only while a collective takes them: group by group, not all workers' at once.

Programs ask for many things in one wave. What each of many workers would send can be several times what they hold, so
a :class:`Lazy` value is computed when its collective's turn comes, a few groups at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

T = TypeVar("T")

#: Bytes of one piece. Pieces far larger than the processor's cache make nothing faster.
PIECE_BYTES = 64 * 2**20


@dataclass(frozen=True, eq=False)
class Lazy:
    """``function(*operands)``, not computed yet; each operand is ``[R or 1, F or 1, ...]``."""

    function: Callable[..., Tensor]
    operands: tuple[Tensor, ...]

    def whole(self) -> Tensor:
        """Return the value, ``[R or 1, F or 1, ...]``."""
        return self.function(*self.operands)

    def by_pieces(self, axis: int, use: Callable[[Tensor], T]) -> list[T]:
        """Return what ``use`` makes of each piece of the value, cut along a leading axis, in order.

        The first piece is one place of the axis; its size decides how many the others are.
        """
        found: list[T] = []
        first, count, step = 0, max(x.shape[axis] for x in self.operands), 1
        while first < count:
            here = min(step, count - first)
            cut = [x.narrow(axis, first, here) if x.shape[axis] > 1 else x for x in self.operands]
            piece = self.function(*cut)
            first += here
            step = max(1, PIECE_BYTES // max(1, piece.numel() * piece.element_size() // here))
            found.append(use(piece))
            del piece  # before the next one is made
        return found

"""How blocks of workers hand tensors to each other, and the trivial case of one block that holds all workers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from simdist.execution.agreement import Topic


@dataclass(frozen=True)
class Like:
    """Shape and dtype of a tensor that is about to arrive, and where: lock-step blocks know what the others send."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, x: Tensor) -> Like:
        return cls(tuple(x.shape), x.dtype, x.device)

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class Exchange(ABC):
    """Moves tensors between the blocks of a lock-step run.

    Attributes:
        blocks: the workers of every block, contiguous and in order.
        me: index of this block.
    """

    blocks: Sequence[range]
    me: int

    @abstractmethod
    def swap(
        self, outgoing: Mapping[int, Sequence[Tensor]], incoming: Mapping[int, Sequence[Like]], topic: Topic
    ) -> dict[int, list[Tensor]]:
        """Send ``outgoing[b]`` to every block b and return what each sent here, shaped as ``incoming[b]``.

        Raises:
            ProgramError: when a block sends something on another topic: the programs disagree.
        """

    @abstractmethod
    def meet(self, topic: Topic) -> None:
        """Hear from all other blocks that they are there too.

        Raises:
            ProgramError: when one is not.
        """


class Alone(Exchange):
    """One block holds all workers; there is nobody to talk to."""

    def __init__(self, workers: int) -> None:
        self.blocks = [range(workers)]
        self.me = 0

    def swap(
        self, outgoing: Mapping[int, Sequence[Tensor]], incoming: Mapping[int, Sequence[Like]], topic: Topic
    ) -> dict[int, list[Tensor]]:
        assert not outgoing, "a single block has nobody to send to"
        assert not incoming, "a single block has nobody to hear from"
        return {}

    def meet(self, topic: Topic) -> None:
        """Nobody else is there."""

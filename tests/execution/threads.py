"""An exchange between blocks in threads of one process, for tests."""

from __future__ import annotations

import queue
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from simdist.execution.agreement import Topic
from simdist.execution.exchange import Exchange, Like

#: a test that waits longer for a message has failed
SECONDS = 60


class Threads(Exchange):
    """Blocks in threads of this process; checks that every block announces what the others really send."""

    def __init__(self, blocks: Sequence[range], me: int, pipes: Mapping[tuple[int, int], queue.Queue[Any]]) -> None:
        self.blocks = blocks
        self.me = me
        self._pipes = pipes

    def swap(
        self, outgoing: Mapping[int, Sequence[Tensor]], incoming: Mapping[int, Sequence[Like]], topic: Topic
    ) -> dict[int, list[Tensor]]:
        assert self.me not in outgoing
        for block, tensors in outgoing.items():
            self._pipes[self.me, block].put((topic.encoded(), [x.clone() for x in tensors]))
        arrived = {block: self._hear(block, topic) for block in incoming}
        for block, likes in incoming.items():
            assert [Like.of(x) for x in arrived[block]] == list(likes)
        return arrived

    def meet(self, topic: Topic) -> None:
        others = [block for block in range(len(self.blocks)) if block != self.me]
        for block in others:
            self._pipes[self.me, block].put((topic.encoded(), []))
        for block in others:
            self._hear(block, topic)

    def _hear(self, block: int, topic: Topic) -> list[Tensor]:
        theirs, tensors = self._pipes[block, self.me].get(timeout=SECONDS)
        topic.compare(theirs, self.blocks[self.me], self.blocks[block])
        found: list[Tensor] = tensors
        return found

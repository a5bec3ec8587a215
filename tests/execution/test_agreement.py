"""Blocks whose programs disagree say so at once, wherever they part; blocks that agree never do."""

from __future__ import annotations

import queue
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from simdist.errors import ProgramError
from simdist.execution.agreement import END, SIZE, Topic
from simdist.execution.inline import inline_worker
from simdist.execution.lockstep import BlockResolver, LockstepBlock
from simdist.execution.wiring import Wiring
from simdist.program import MeshShape, Worker
from simdist.program.program import LockstepProgram
from tests.execution.threads import Threads

BLOCKS = [range(2), range(2, 4)]
WIRING = Wiring.from_names({"params": "fp32", "grads": "fp32", "factors": "fp32", "statistics": "fp32"})


class Asking(LockstepProgram):
    """Sums tensors over all workers: those whose names ``asked`` gives for a worker."""

    def __init__(self, asked: Callable[[int], list[str]]) -> None:
        self.asked = asked

    async def start(self, worker: Worker) -> Any:
        return 0.0

    async def step(self, worker: Worker, state: Any, step: int) -> tuple[Any, dict[str, Any]]:
        assert worker.index is not None
        for name in self.asked(worker.index):
            await worker.mesh.shards.sum(torch.ones(3), part=name)
        return state, {}

    async def parameters(self, worker: Worker, state: Any) -> dict[str, Any]:
        return {}


def run(asked: Callable[[int], list[str]], steps: int) -> list[BaseException | None]:
    """Run two blocks of two workers and return what each raised."""
    pipes: dict[tuple[int, int], queue.Queue[Any]] = {(0, 1): queue.Queue(), (1, 0): queue.Queue()}

    def block(me: int) -> None:
        mesh = MeshShape(1, 4)
        workers = [inline_worker(mesh, index, 0) for index in BLOCKS[me]]
        made = LockstepBlock(Asking(asked), workers, BlockResolver(mesh, WIRING, Threads(BLOCKS, me, pipes)))
        made.start()
        for step in range(1, steps + 1):
            made.step(step)

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(block, me) for me in range(2)]
        return [future.exception(timeout=30) for future in futures]


def test_blocks_that_agree_finish() -> None:
    assert run(lambda worker: ["a", "b"], 3) == [None, None]


@pytest.mark.parametrize(
    ("mine", "theirs", "words", "others"),
    [
        # the second block has ended its step while the first still asks: on the last step it would wait for ever
        (
            ["a", "b"],
            ["a"],
            r"ask for \[.*b'.*\] as request 2 of step 1.*workers 2 to 3 have ended step 1",
            "have ended",
        ),
        (
            ["a"],
            ["a", "b"],
            "workers 0 to 1 have ended step 1, while workers 2 to 3 are at request 2 of step 1",
            "all_reduce of ':b'",
        ),
        # equal sizes: without a check one would be taken for the other
        (
            ["a", "b"],
            ["b", "a"],
            r"ask for \[.*a'.*\] as request 1.*workers 2 to 3 ask for something else",
            "else there",
        ),
    ],
)
def test_blocks_that_disagree_both_say_where(mine: list[str], theirs: list[str], words: str, others: str) -> None:
    first, second = run(lambda worker: mine if worker < 2 else theirs, 1)
    assert isinstance(first, ProgramError)
    assert isinstance(second, ProgramError)
    with pytest.raises(ProgramError, match=words):
        raise first
    with pytest.raises(ProgramError, match=others):
        raise second
    assert "lockstep = False" in str(first)


def test_topics_differ_wherever_places_or_requests_differ() -> None:
    topics = [
        Topic(1, 0, ["a"]),
        Topic(2, 0, ["a"]),
        Topic(1, 1, ["a"]),
        Topic(1, 0, ["b"]),
        Topic(1, 0),
        Topic(1, END),
    ]
    encoded = [topic.encoded() for topic in topics]
    assert {len(each) for each in encoded} == {SIZE}
    for i, topic in enumerate(topics):
        for j, other in enumerate(encoded):
            if i == j:
                topic.compare(other, range(1), range(1, 2))
            else:
                with pytest.raises(ProgramError, match=r"worker 0 .* while worker 1 "):
                    topic.compare(other, range(1), range(1, 2))

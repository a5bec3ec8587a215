"""Irregular programs on Ray actors: the driver owns time and order, the actors own coroutines and tensors.

A parcel is an object reference that the sending actor puts into Ray's store; the receiving actor fetches it from
there, so that the driver passes on references only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from simdist.errors import SimdistError
from simdist.execution.engine import peak_rss_bytes, set_threads
from simdist.execution.inline import inline_worker
from simdist.execution.live_block import Asked, Delivery, LiveBlock, LiveHosts
from simdist.execution.memory import what_helps
from simdist.execution.ray_actors import ActorGroup, Failure
from simdist.execution.wiring import Wiring
from simdist.program import MeshShape
from simdist.program.program import IrregularProgram


class LiveActor:
    """The coroutines of one block of workers in one process."""

    def __init__(self, me: int, blocks: Sequence[range], mesh: MeshShape, threads: int) -> None:
        self.mine = blocks[me]
        self.mesh = mesh
        set_threads(threads)

    def start(self, make_program: Callable[[], IrregularProgram], wiring: Wiring, seed: int) -> Failure | None:
        """Make this block's workers."""
        import ray

        try:
            workers = [inline_worker(self.mesh, index, seed) for index in self.mine]
            self.block = LiveBlock(make_program(), workers, wiring, wrap=ray.put, unwrap=ray.get)
        except SimdistError as error:
            return Failure(error)
        return None

    def resume(self, deliveries: Mapping[int, tuple[Delivery, ...] | None]) -> list[Asked] | Failure:
        """Resume some of this block's workers."""
        try:
            return self.block.resume(deliveries)
        except SimdistError as error:
            return Failure(error)

    def peak_rss_bytes(self) -> int:
        """Return this process's largest resident memory so far."""
        return peak_rss_bytes()


class RayHosts(LiveHosts):
    """All coroutines of an irregular run, dealt out to Ray actors (see :class:`ActorGroup` for the arguments)."""

    def __init__(
        self,
        make_program: Callable[[], IrregularProgram],
        mesh: MeshShape,
        wiring: Wiring,
        seed: int,
        blocks: Sequence[range],
        *,
        device: str = "cpu",
        threads: int = 1,
        address: str | None = None,
    ) -> None:
        self._group = ActorGroup(blocks, device, address, threads, what_helps(False, None, len(blocks)))
        self._owner = {worker: actor for actor, block in enumerate(blocks) for worker in block}
        self._actor_args = (list(blocks), mesh, threads)
        self._start_args = (make_program, wiring, seed)

    def start(self) -> None:
        self._group.start(LiveActor, *self._actor_args)
        self._group.call("start", *self._start_args)

    def resume(self, deliveries: Mapping[int, tuple[Delivery, ...] | None]) -> list[Asked]:
        by_actor: dict[int, dict[int, tuple[Delivery, ...] | None]] = defaultdict(dict)
        for worker, answers in deliveries.items():
            by_actor[self._owner[worker]][worker] = answers
        begun = [self._group.begin_one(actor, "resume", mine) for actor, mine in by_actor.items()]
        found: list[list[Asked]] = self._group.results(begun, list(by_actor))
        return sorted((asked for block in found for asked in block), key=lambda asked: asked.worker)

    def peak_rss_bytes(self) -> int:
        peaks: list[int] = self._group.call("peak_rss_bytes")
        return sum(peaks) + peak_rss_bytes()

    def close(self) -> None:
        self._group.close()

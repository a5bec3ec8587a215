"""The Ray engine for lock-step programs: actors that each hold a block of workers.

The actors run the lock-step loop by themselves and exchange tensors among each other (see
:mod:`simdist.execution.gloo`); the driver hears from them once per step. One thread per actor by default, sums by
the pairwise tree over all workers: the bits are those of the inline engine for any number of actors.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simdist.errors import SimdistError
from simdist.execution.engine import Engine, MayBegin, peak_rss_bytes, set_threads
from simdist.execution.exchange import Alone, Exchange
from simdist.execution.inline import inline_worker
from simdist.execution.lockstep import BlockResolver, Hold, LockstepBlock, Resolver, StepOutcome
from simdist.execution.memory import what_helps
from simdist.execution.ray_actors import ActorGroup, Failure
from simdist.execution.saved import Part
from simdist.execution.stacked_block import StackedBlockResolver, block_cohort, part_of_mesh
from simdist.execution.wiring import Wiring
from simdist.program import MeshShape, Worker
from simdist.program.program import LockstepProgram

#: Steps that the actors are told to run ahead of the one that the driver reads.
AHEAD = 2

#: Where blocks find each other: a file on the driver's node if all are there, or a host and port.
Rendezvous = str | tuple[str, int]


@dataclass(frozen=True)
class Stacking:
    """How an actor runs its block: a coroutine per worker, or one stacked cohort (``chunk``: see EngineSettings)."""

    stacked: bool = False
    chunk: int | None = None


class BlockActor:
    """One block of workers in one process. Methods return a :class:`Failure` instead of raising for users' errors."""

    def __init__(self, me: int, blocks: Sequence[range], mesh: MeshShape, threads: int, stacking: Stacking) -> None:
        self.blocks = blocks
        self.stacking = stacking
        self.me = me
        self.mesh = mesh
        self.store: Any = None
        set_threads(threads)

    def node(self) -> tuple[str, str]:
        """Return (node id, IP address), so that the driver can decide how blocks find each other."""
        import ray

        return ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address()

    def open_store(self) -> int:
        """Open a rendezvous server on this node and return its port; only for blocks on several nodes."""
        host, count = self.node()[1], len(self.blocks)
        self.store = torch_stores().TCPStore(host, 0, count, is_master=True, wait_for_workers=False)
        return int(self.store.port)

    def start(
        self,
        make_program: Callable[[], LockstepProgram],
        wiring: Wiring,
        seed: int,
        make_hold: Callable[[], Hold] | None,
        rendezvous: Rendezvous,
    ) -> Failure | None:
        """Join the other blocks and make this block's workers."""
        try:
            program = make_program()
            workers, resolver = self._workers(wiring, seed, self._join(rendezvous))
            self.block = LockstepBlock(program, workers, resolver, make_hold() if make_hold else None)
            self.block.start()
        except SimdistError as error:
            return Failure(error)
        return None

    def _workers(self, wiring: Wiring, seed: int, exchange: Exchange) -> tuple[list[Worker], Resolver]:
        mine = self.blocks[self.me]
        if self.stacking.stacked:
            cohort = block_cohort(self.mesh, mine, seed, self.stacking.chunk)
            return [cohort], StackedBlockResolver(self.mesh, wiring, exchange)
        workers = [inline_worker(self.mesh, index, seed) for index in mine]
        return workers, BlockResolver(self.mesh, wiring, exchange)

    def _join(self, rendezvous: Rendezvous) -> Exchange:
        from simdist.execution.gloo import GlooExchange

        count = len(self.blocks)
        if count == 1:
            return Alone(self.mesh.workers)
        if isinstance(rendezvous, str):
            return GlooExchange(self.blocks, self.me, torch_stores().FileStore(rendezvous, count), loopback=True)
        store = self.store or torch_stores().TCPStore(*rendezvous, count, is_master=False)
        return GlooExchange(self.blocks, self.me, store, loopback=False, address=self.node()[1])

    def step(self, step: int) -> StepOutcome | Failure | None:
        """Run one step; only the first block reports what it did, since all did the same."""
        try:
            outcome = self.block.step(step)
        except SimdistError as error:
            return Failure(error)
        return outcome if self.me == 0 else None

    def save(self) -> bytes | Failure:
        """Return the states of this block's workers."""
        try:
            return self.block.save(self.blocks[self.me])
        except SimdistError as error:
            return Failure(error)

    def restore(self, blocks: Sequence[Any], step: int) -> Failure | None:
        """Go on from saved states.

        Args:
            blocks: references to what the blocks of the run that was saved had been, those of this block's workers.
            step: the step after which they were saved.
        """
        import ray

        try:
            self.block.restore(ray.get(list(blocks)), self.blocks[self.me], step)
        except SimdistError as error:
            return Failure(error)
        return None

    def parameters(self) -> dict[str, Tensor] | Failure | None:
        """Return the full parameters, from the first block."""
        try:
            found = self.block.parameters()
        except SimdistError as error:
            return Failure(error)
        return {name: x.cpu() for name, x in found.items()} if self.me == 0 else None

    def peak_rss_bytes(self) -> int:
        """Return this process's largest resident memory so far."""
        return peak_rss_bytes()


def torch_stores() -> Any:
    """Return the module that has torch's rendezvous stores (its stubs do not export them)."""
    import torch.distributed

    return torch.distributed


class RayEngine(Engine):
    """Blocks of workers on Ray actors, on an embedded Ray or an existing one.

    Args:
        make_program: makes the program in each actor (a picklable function).
        make_hold: makes each actor's pacing, for paced runs.
        blocks, device, threads, address, squeeze: see :class:`simdist.execution.ray_actors.ActorGroup`.
    """

    def __init__(
        self,
        make_program: Callable[[], LockstepProgram],
        mesh: MeshShape,
        wiring: Wiring,
        seed: int,
        blocks: Sequence[range],
        *,
        make_hold: Callable[[], Hold] | None = None,
        device: str = "cpu",
        threads: int = 1,
        stacking: Stacking = Stacking(),
        address: str | None = None,
        squeeze: bool = False,
    ) -> None:
        if stacking.stacked:
            for block in blocks:
                part_of_mesh(mesh, block)
        helps = what_helps(stacking.stacked, stacking.chunk, len(blocks))
        self._group = ActorGroup(blocks, device, address, threads, helps, squeeze)
        self._actor_args = (list(blocks), mesh, threads, stacking)
        self._start_args = (make_program, wiring, seed, make_hold)
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def start(self) -> None:
        self._group.start(BlockActor, *self._actor_args)
        import ray

        nodes = self._group.call("node")
        if {node for node, _ in nodes} == {ray.get_runtime_context().get_node_id()}:
            self._folder = tempfile.TemporaryDirectory(prefix="simdist-")
            rendezvous: Rendezvous = str(Path(self._folder.name) / "rendezvous")
        else:
            port = self._group.results([self._group.begin_one(0, "open_store")], [0])[0]
            rendezvous = (nodes[0][1], port)
        self._group.call("start", *self._start_args, rendezvous)

    def steps(self, first: int, last: int, may_begin: MayBegin = lambda step: True) -> Iterator[StepOutcome]:
        ahead: list[list[Any]] = []
        for step in range(first, last + 1):
            if not may_begin(step):
                break
            ahead.append(self._group.begin("step", step))
            if len(ahead) > AHEAD:
                yield self._group.results(ahead.pop(0))[0]
        while ahead:
            yield self._group.results(ahead.pop(0))[0]

    def save(self) -> Iterator[Part]:
        # one by one: the driver never holds more than one block
        for index, workers in enumerate(self._group.blocks):
            data: bytes = self._group.results([self._group.begin_one(index, "save")], [index])[0]
            yield Part(workers, data)

    def restore(self, parts: Sequence[Part], step: int) -> None:
        import ray

        wanted: dict[int, list[Any]] = {index: [] for index in range(len(self._group.blocks))}
        for held, data in parts:
            reference = ray.put(data)
            for index, block in enumerate(self._group.blocks):
                if block.start < held.stop and held.start < block.stop:
                    wanted[index].append(reference)
        self._group.results([self._group.begin_one(i, "restore", mine, step) for i, mine in wanted.items()])

    @property
    def intact_after(self) -> int | None:
        """Other blocks may be in the middle of a step that has failed in one."""
        return None

    def parameters(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self._group.call("parameters")[0]
        return {name: torch.as_tensor(x) for name, x in found.items()}

    def peak_rss_bytes(self) -> int:
        peaks: list[int] = self._group.call("peak_rss_bytes")
        return sum(peaks) + peak_rss_bytes()

    def close(self) -> None:
        self._group.close()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

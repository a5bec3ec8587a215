"""The Ray engine: actors that each hold a block of workers. The only file that imports Ray.

The actors run the lock-step loop by themselves and exchange tensors among each other (see
:mod:`simdist.execution.gloo`); the driver hears from them once per step. One thread per actor by default, sums by
the pairwise tree over all workers: the bits are those of the inline engine for any number of actors.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simdist.errors import InputError, ProgramError, RunError, SimdistError
from simdist.execution.engine import Engine, peak_rss_bytes, set_threads
from simdist.execution.inline import inline_worker
from simdist.execution.lockstep import BlockResolver, Hold, LockstepBlock, StepOutcome
from simdist.execution.wiring import Wiring
from simdist.program import MeshShape
from simdist.program.program import LockstepProgram

#: Seconds to wait for a Ray address before giving up, and steps in flight ahead of the one being read.
CONNECT_SECONDS = 15
AHEAD = 2


class Failure:
    """An error that a worker program raised, carried to the driver as a value (Ray would wrap it in its own)."""

    def __init__(self, error: SimdistError) -> None:
        self.kind = type(error)
        self.message = str(error)

    def raise_it(self) -> None:
        raise self.kind(self.message)


class BlockActor:
    """One block of workers in one process. Methods return a :class:`Failure` instead of raising for users' errors."""

    def __init__(self, blocks: Sequence[range], me: int, mesh: MeshShape, threads: int) -> None:
        self.blocks = blocks
        self.me = me
        self.mesh = mesh
        self.exchange: Any = None
        set_threads(threads)
        logging.getLogger("torch").setLevel(logging.ERROR)

    def node(self) -> tuple[str, str]:
        """Return (node id, IP address), so that the driver can decide how blocks find each other."""
        import ray

        return ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address()

    def open_store(self) -> int:
        """Open a rendezvous server on this node and return its port; used only when blocks are on several nodes."""
        import torch.distributed as dist

        self.store = dist.TCPStore(self.node()[1], 0, len(self.blocks), is_master=True, wait_for_workers=False)
        return int(self.store.port)

    def start(
        self,
        make_program: Callable[[], LockstepProgram],
        wiring: Wiring,
        seed: int,
        make_hold: Callable[[], Hold] | None,
        rendezvous: str | tuple[str, int],
    ) -> Failure | None:
        """Join the other blocks and make this block's workers; ``rendezvous`` is a file, or a host and port."""
        import torch.distributed as dist

        from simdist.execution.exchange import Alone
        from simdist.execution.gloo import GlooExchange

        try:
            program = make_program()
        except SimdistError as error:
            return Failure(error)
        if len(self.blocks) == 1:
            self.exchange = Alone(self.mesh.workers)
        elif isinstance(rendezvous, str):
            store: Any = dist.FileStore(rendezvous, len(self.blocks))
            self.exchange = GlooExchange(self.blocks, self.me, store, loopback=True)
        else:
            store = getattr(self, "store", None) or dist.TCPStore(*rendezvous, len(self.blocks), is_master=False)
            self.exchange = GlooExchange(self.blocks, self.me, store, loopback=False)
        workers = [inline_worker(self.mesh, index, seed) for index in self.blocks[self.me]]
        resolver = BlockResolver(self.mesh, wiring, self.exchange)
        self.block = LockstepBlock(program, workers, resolver, make_hold() if make_hold else None)
        try:
            self.block.start()
        except SimdistError as error:
            return Failure(error)
        return None

    def step(self, step: int) -> StepOutcome | Failure | None:
        """Run one step; only the first block reports what it did, since all did the same."""
        try:
            outcome = self.block.step(step)
        except SimdistError as error:
            return Failure(error)
        return outcome if self.me == 0 else None

    def parameters(self) -> dict[str, Tensor] | Failure | None:
        try:
            found = self.block.parameters()
        except SimdistError as error:
            return Failure(error)
        return {name: x.cpu() for name, x in found.items()} if self.me == 0 else None

    def peak_rss_bytes(self) -> int:
        return peak_rss_bytes()


class RayEngine(Engine):
    """Blocks of workers on Ray actors, on an embedded Ray or an existing one.

    Args:
        make_program: makes the program in each actor (a picklable function).
        make_hold: makes each actor's pacing, for paced runs.
        blocks: the workers of every actor.
        device: ``cpu`` or ``cuda``; CUDA actors share the GPUs evenly.
        address: of a running Ray cluster; None starts an embedded one and shuts it down at the end.
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
        address: str | None = None,
    ) -> None:
        self._make_program = make_program
        self._make_hold = make_hold
        self._mesh = mesh
        self._wiring = wiring
        self._seed = seed
        self._blocks = blocks
        self._device = device
        self._threads = threads
        self._address = address
        self._actors: list[Any] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._started_ray = False

    def start(self) -> None:
        import ray

        self._started_ray = connect(self._address, len(self._blocks))
        need = self._resources()
        actor_class: Any = ray.remote(BlockActor)
        self._actors = [
            actor_class.options(**need, max_restarts=0).remote(list(self._blocks), i, self._mesh, self._threads)
            for i in range(len(self._blocks))
        ]
        nodes = self._all("node")
        if len({node for node, _ in nodes}) == 1:
            self._folder = tempfile.TemporaryDirectory(prefix="simdist-")
            rendezvous: str | tuple[str, int] = str(Path(self._folder.name) / "rendezvous")
        else:
            rendezvous = (nodes[0][1], int(self._get([self._actors[0].open_store.remote()])[0]))
        self._all("start", self._make_program, self._wiring, self._seed, self._make_hold, rendezvous)

    def _resources(self) -> dict[str, float]:
        import ray

        have = ray.cluster_resources()
        need: dict[str, float] = {"num_cpus": 1}
        if self._device == "cuda":
            gpus = have.get("GPU", 0)
            if not gpus:
                raise InputError("engine.device: got 'cuda', but the Ray cluster has no GPU; expected 'cpu'")
            need["num_gpus"] = min(1.0, gpus / len(self._blocks))
        if have.get("CPU", 0) < len(self._blocks):
            raise InputError(
                f"engine.actors: got {len(self._blocks)} actors, but the Ray cluster has {have.get('CPU', 0):g} CPUs; "
                f"expected at most {have.get('CPU', 0):g} actors (engine.actors)"
            )
        return need

    def steps(self, first: int, last: int) -> Iterator[StepOutcome]:
        ahead: list[list[Any]] = []
        for step in range(first, last + 1):
            ahead.append([actor.step.remote(step) for actor in self._actors])
            if len(ahead) > AHEAD:
                yield self._get(ahead.pop(0))[0]
        while ahead:
            yield self._get(ahead.pop(0))[0]

    def parameters(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self._all("parameters")[0]
        return {name: torch.as_tensor(x) for name, x in found.items()}

    def peak_rss_bytes(self) -> int:
        return sum(self._all("peak_rss_bytes")) + peak_rss_bytes()

    def _all(self, method: str, *args: Any) -> list[Any]:
        return self._get([getattr(actor, method).remote(*args) for actor in self._actors])

    def _get(self, references: list[Any]) -> list[Any]:
        """Wait for all actors; the first error wins, as the others then wait for one that is gone."""
        import ray

        left = list(references)
        while left:
            done, left = ray.wait(left, num_returns=1)
            try:
                value = ray.get(done[0])
            except ray.exceptions.RayActorError as error:
                lost = references.index(done[0])
                block = self._blocks[lost]
                raise RunError(
                    f"Ray actor {lost}, which held workers {block[0]} to {block[-1]}, is gone "
                    f"({_first_line(error)}); the run stops here"
                ) from error
            except ray.exceptions.RayTaskError as error:
                others = self._lost(references)
                if others is not None:
                    block = self._blocks[others]
                    raise RunError(
                        f"Ray actor {others}, which held workers {block[0]} to {block[-1]}, is gone; the run stops here"
                    ) from error
                raise ProgramError(f"a worker raised an unexpected error: {_first_line(error.cause)}") from error
            if isinstance(value, Failure):
                value.raise_it()
        return list(ray.get(references))

    def _lost(self, references: list[Any]) -> int | None:
        """Return which actor died, if one did: its peers fail first, with a closed connection."""
        import ray

        for index, reference in enumerate(references):
            done, _ = ray.wait([reference], timeout=5)
            if done:
                try:
                    ray.get(reference)
                except ray.exceptions.RayActorError:
                    return index
                except ray.exceptions.RayTaskError:
                    continue
        return None

    def close(self) -> None:
        import ray

        for actor in self._actors:
            with contextlib.suppress(Exception):
                ray.kill(actor)
        self._actors = []
        if self._started_ray:
            ray.shutdown()
            self._started_ray = False
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


def default_actors(device: str) -> int:
    """Return one actor per core of this machine, or per GPU when the tensors live there."""
    return max(1, torch.cuda.device_count()) if device == "cuda" else os.cpu_count() or 1


def _first_line(error: BaseException | None) -> str:
    lines = str(error).strip().splitlines() if error else []
    return lines[0] if lines else type(error).__name__


def connect(address: str | None, actors: int) -> bool:
    """Start an embedded Ray, or attach to a running one; return whether this call started it.

    The embedded one is quiet, keeps to loopback, has no dashboard, and as many CPU slots as there are actors, so that
    more actors than cores share the cores instead of waiting for ever.

    Raises:
        InputError: when nothing answers at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    import ray

    if ray.is_initialized():
        return False
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if address is None:
        cores = os.cpu_count() or 1
        ray.init(num_cpus=max(cores, actors), include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)
        return True
    host, _, port = address.removeprefix("ray://").partition(":")
    if port and not address.startswith("ray://") and not _answers(host, port):
        raise InputError(
            f"--ray-address: got {address!r}, where nothing answers within {CONNECT_SECONDS} s; "
            f"expected the address of a running Ray head (see `ray start --head`), or no address for an embedded Ray"
        )
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise InputError(f"--ray-address: got {address!r}, which cannot be used: {_first_line(error)}") from error
    return True


def _answers(host: str, port: str) -> bool:
    import socket

    try:
        with socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS):
            return True
    except (OSError, ValueError):
        return False

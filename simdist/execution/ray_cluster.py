"""Ray itself: an embedded or attached cluster, a group of actors on it, and what is said when one is lost."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from simdist.errors import InputError, ProgramError, RunError, SimdistError

#: Seconds to wait for a Ray address, for actors to be placed, and for the news that an actor died when its peers
#: have lost touch with it.
CONNECT_SECONDS = 15
READY_SECONDS = 180
NEWS_SECONDS = 5


class Failure:
    """An error for people that a worker raised, carried to the driver as a value (Ray would wrap it in its own)."""

    def __init__(self, error: SimdistError) -> None:
        self.kind = type(error)
        self.message = str(error)

    def raise_it(self) -> None:
        raise self.kind(self.message)


class ActorGroup:
    """One actor per block of workers.

    Args:
        blocks: the workers of every actor.
        device: ``cpu`` or ``cuda``; CUDA actors share the GPUs evenly.
        address: of a running Ray cluster; None starts an embedded one and shuts it down at the end.
    """

    def __init__(self, blocks: Sequence[range], device: str, address: str | None) -> None:
        self.blocks = blocks
        self._device = device
        self._address = address
        self._actors: list[Any] = []
        self._started_ray = False

    def start(self, actor_class: type, *args: Any) -> None:
        """Make the actors, ``actor_class(block number, *args)`` each.

        Raises:
            InputError: when the cluster does not answer or is too small.
        """
        self._started_ray = connect(self._address, len(self.blocks))
        import ray

        remote: Any = ray.remote(actor_class)
        options = {**self._resources(), "max_restarts": 0}
        self._actors = [remote.options(**options).remote(i, *args) for i in range(len(self.blocks))]
        _, waiting = ray.wait(
            [actor.__ray_ready__.remote() for actor in self._actors],
            num_returns=len(self._actors),
            timeout=READY_SECONDS,
        )
        if waiting:
            raise InputError(
                f"engine.actors: got {len(self._actors)} actors, but {len(waiting)} of them found no free place on the "
                f"Ray cluster within {READY_SECONDS} s; expected at most {len(self._actors) - len(waiting)}, or fewer "
                f"other jobs on it"
            )

    def _resources(self) -> dict[str, float]:
        import ray

        have = ray.cluster_resources()
        need: dict[str, float] = {"num_cpus": 1}
        if self._device == "cuda":
            gpus = have.get("GPU", 0)
            if not gpus:
                raise InputError("engine.device: got 'cuda', but the Ray cluster has no GPU; expected 'cpu'")
            need["num_gpus"] = min(1.0, gpus / len(self.blocks))
        cpus = have.get("CPU", 0)
        if cpus < len(self.blocks):
            raise InputError(
                f"engine.actors: got {len(self.blocks)} actors, but the Ray cluster has {cpus:g} CPUs; "
                f"expected at most {cpus:g} actors"
            )
        return need

    def begin(self, method: str, *args: Any) -> list[Any]:
        """Call a method of every actor and return the references of its results."""
        return [getattr(actor, method).remote(*args) for actor in self._actors]

    def begin_one(self, index: int, method: str, *args: Any) -> Any:
        """Call a method of one actor."""
        return getattr(self._actors[index], method).remote(*args)

    def call(self, method: str, *args: Any) -> list[Any]:
        """Call a method of every actor and wait for the results."""
        return self.results(self.begin(method, *args))

    def results(self, references: Sequence[Any], actors: Sequence[int] | None = None) -> list[Any]:
        """Wait for results; the first error wins, as its peers then wait for an actor that is gone.

        Args:
            actors: which actor each reference is of; default: all, in order.

        Raises:
            RunError: naming the lost actor and its workers.
            SimdistError: whatever error for people a worker raised.
        """
        import ray

        owners = list(range(len(self.blocks)) if actors is None else actors)
        left = list(references)
        while left:
            done, left = ray.wait(left, num_returns=1)
            owner = owners[list(references).index(done[0])]
            try:
                value = ray.get(done[0])
            except ray.exceptions.RayActorError as error:
                raise self._gone(owner) from error
            except ray.exceptions.RayTaskError as error:
                # the peers of a dead actor fail first, with a closed connection: look for the real news
                lost = self._dead(references, owners)
                if lost is not None:
                    raise self._gone(lost) from error
                cause = error.cause
                raise ProgramError(
                    f"a worker of Ray actor {owner} raised {type(cause).__name__}: {first_line(cause)}"
                ) from error
            if isinstance(value, Failure):
                value.raise_it()
        return list(ray.get(list(references)))

    def _gone(self, actor: int) -> RunError:
        block = self.blocks[actor]
        return RunError(
            f"Ray actor {actor}, which held workers {block[0]} to {block[-1]}, died (killed, or out of memory); "
            "the run stops here"
        )

    def _dead(self, references: Sequence[Any], owners: Sequence[int]) -> int | None:
        import ray

        # one deadline for all: the peers that are still alive may wait for the dead one for ever
        deadline = time.monotonic() + NEWS_SECONDS
        left = list(references)
        while left:
            done, left = ray.wait(left, num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
            if not done:
                return None
            try:
                ray.get(done[0])
            except ray.exceptions.RayActorError:
                return owners[list(references).index(done[0])]
            except ray.exceptions.RayTaskError:
                continue
        return None

    def close(self) -> None:
        """Kill the actors, and Ray if it was started here."""
        import ray

        for actor in self._actors:
            with contextlib.suppress(Exception):
                ray.kill(actor)
        self._actors = []
        if self._started_ray:
            ray.shutdown()
            self._started_ray = False


def default_actors(device: str) -> int:
    """Return one actor per core of this machine, or per GPU when the tensors live there."""
    return max(1, torch.cuda.device_count()) if device == "cuda" else os.cpu_count() or 1


def first_line(error: BaseException | None) -> str:
    """Return the first line of an error's message."""
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
    # a busy machine may take longer than the default half a minute to start Ray
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")
    if address is None:
        # Ray's own switch for "this machine only": its servers then listen on the loopback address, not on all
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    import ray

    if ray.is_initialized():
        return False
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        cores = os.cpu_count() or 1
        ray.init(num_cpus=max(cores, actors), include_dashboard=False, **quiet)
        return True
    host, _, port = address.removeprefix("ray://").partition(":")
    if port and not _answers(host, port):
        raise InputError(
            f"--ray-address: got {address!r}, where nothing answers within {CONNECT_SECONDS} s; "
            f"expected the address of a running Ray head (see `ray start --head`), or no address for an embedded Ray"
        )
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise InputError(
            f"--ray-address: got {address!r}, which cannot be used ({first_line(error)}); "
            f"expected HOST:PORT of a running Ray head"
        ) from error
    return True


@contextmanager
def kept_alive(address: str | None, actors: int) -> Iterator[None]:
    """Hold one Ray open for several runs, so that each does not wait for its own to start."""
    started = connect(address, actors)
    try:
        yield
    finally:
        import ray

        if started:
            ray.shutdown()


def _answers(host: str, port: str) -> bool:
    try:
        with socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS):
            return True
    except (OSError, ValueError):
        return False

"""A group of Ray actors, one per block of workers: how they are started, called, and given up when one is lost."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any

from simdist.errors import InputError, ProgramError, RunError, SimdistError, WorkersLost
from simdist.execution.memory import is_out_of_memory, wanted
from simdist.execution.ray_cluster import connect, disconnect, first_line
from simdist.execution.ray_losses import is_loss, lost_touch, oldest, quoted_error, refusal, what_happened
from simdist.execution.ray_places import Places, warn_if_crowded

#: Seconds for an actor to start (a cluster's node may first have to unpack what travels to it), and for the news that
#: an actor died when its peers have lost touch with it.
START_SECONDS = 300
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
        threads: of each actor.
        helps: what to do about too little memory, for messages (see :func:`simdist.execution.memory.what_helps`).
        squeeze: share what CPUs there are rather than refuse (see :class:`simdist.execution.ray_places.Places`).
    """

    def __init__(
        self,
        blocks: Sequence[range],
        device: str,
        address: str | None,
        threads: int = 1,
        helps: str = "",
        squeeze: bool = False,
    ) -> None:
        self.blocks = blocks
        self._address = address
        self._threads = threads
        self._helps = helps
        self._places = Places(len(blocks), threads, device, address is None, squeeze)
        self._actors: list[Any] = []
        self._started_ray = False

    def start(self, actor_class: type, *args: Any) -> None:
        """Make the actors, ``actor_class(block number, *args)`` each.

        Raises:
            InputError: when the cluster does not answer or is too small, or the actors cannot be made on it.
            WorkersLost: when an actor or its node is lost meanwhile.
        """
        self._started_ray = connect(self._address, len(self.blocks))
        if self._address is None:
            warn_if_crowded(len(self.blocks), self._threads)
        import ray

        remote: Any = ray.remote(actor_class)
        places = self._places.reserve()
        self._actors = [
            remote.options(**options, max_restarts=0).remote(index, *args) for index, options in enumerate(places)
        ]
        begun = [actor.__ray_ready__.remote() for actor in self._actors]
        _, waiting = ray.wait(begun, num_returns=len(begun), timeout=START_SECONDS)
        if waiting:
            raise InputError(
                f"engine.actors: got {len(begun)} actors, of which {len(waiting)} had not started after "
                f"{START_SECONDS} s; expected a Ray cluster with less to do, or fewer actors"
            )
        try:
            self.results(begun)
        except ray.exceptions.RuntimeEnvSetupError as error:
            raise InputError(
                f"got a Ray cluster whose nodes cannot take over this package and the working directory "
                f"({quoted_error(error)}); expected nodes with the same Python, Ray and torch as here"
            ) from error

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
        """Wait for results; the first error wins, as its peers then wait for an actor that does not go on.

        Args:
            actors: which actor each reference is of; default: all, in order.

        Raises:
            WorkersLost: naming the lost actor and its workers, and what is known of its end.
            RunError: when a worker ran out of memory, or an actor cannot be made.
            SimdistError: whatever error for people a worker raised.
        """
        import ray

        owner = dict(zip(references, range(len(self.blocks)) if actors is None else actors, strict=True))
        left = list(references)
        while left:
            done, left = ray.wait(left, num_returns=1)
            actor = owner[done[0]]
            try:
                value = ray.get(done[0])
            except ray.exceptions.RayTaskError as error:
                raise self._failed(actor, error.cause) from error
            except ray.exceptions.RayError as error:
                if (why := refusal(error)) is not None:
                    raise RunError(f"{self._named(actor)}, could not be made on its node: {why}") from error
                if not is_loss(error):
                    raise
                raise self._lost({actor: error, **self._ended(0)}) from error
            if isinstance(value, Failure):
                value.raise_it()
        return list(ray.get(list(references)))

    def _failed(self, actor: int, cause: BaseException) -> SimdistError:
        """Return the error for one that a worker's code raised."""
        if lost_touch(cause):
            # the peers of a dead actor fail first, with a closed connection: look for the real news
            ended = self._ended(NEWS_SECONDS)
            return self._lost(ended or {actor: cause})
        if is_out_of_memory(cause):
            return RunError(f"{self._named(actor)}, ran out of memory{wanted(cause)}; {self._helps}")
        return ProgramError(f"a worker of Ray actor {actor} raised {type(cause).__name__}: {first_line(cause)}")

    def _lost(self, errors: dict[int, Any]) -> WorkersLost:
        first = oldest(errors)
        others = sorted(errors.keys() - {first})
        more = f" (so did the actors {', '.join(map(str, others))})" if others else ""
        return WorkersLost(f"{self._named(first)}, {self._end_of(first, errors[first])}{more}")

    def _end_of(self, actor: int, error: BaseException) -> str:
        node = self._places.nodes[actor] if self._places.nodes else None
        return what_happened(error, self._helps, node)

    def _named(self, actor: int) -> str:
        block = self.blocks[actor]
        return f"Ray actor {actor}, which held workers {block[0]} to {block[-1]}"

    def _ended(self, seconds: float) -> dict[int, Any]:
        """Return the actors that have ended, with what Ray says of each; wait some seconds for the first.

        The others may wait for the dead one for ever, so they are not asked anything that needs an answer.
        """
        import ray

        asked = {actor.__ray_ready__.remote(): index for index, actor in enumerate(self._actors)}
        found: dict[int, Any] = {}
        left = list(asked)
        deadline = time.monotonic() + seconds
        while left:
            done, left = ray.wait(left, num_returns=1, timeout=max(0.1 if found else 0.0, deadline - time.monotonic()))
            if not done:
                break
            try:
                ray.get(done[0])
            except ray.exceptions.RayError as error:
                found[asked[done[0]]] = error
                deadline = 0.0
        return found

    def close(self) -> None:
        """Kill the actors, give their places back, and end Ray if it was started here."""
        import ray

        for actor in self._actors:
            with contextlib.suppress(Exception):  # it may be dead already, or Ray itself gone
                ray.kill(actor)
        self._actors = []
        with contextlib.suppress(Exception):  # as above
            self._places.release()
        if self._started_ray:
            disconnect()
            self._started_ray = False

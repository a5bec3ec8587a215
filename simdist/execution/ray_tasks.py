"""Calls that each fill a folder, side by side as Ray tasks; the folders come back without a shared file system.

A task fills a temporary folder on its node. The files travel in pieces of a few MiB, of which only some wait at a time,
so that neither side holds a big folder in memory. Ray itself never repeats a task here: it would mix the pieces of two
tries, and it counts without telling. A task that is lost (its process or node is gone, or ran out of memory) is tried
again from here, a bounded number of times; one that fails by itself is not.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simdist.errors import InputError, RunError
from simdist.execution.ray_cluster import first_line
from simdist.execution.ray_losses import is_loss, what_happened
from simdist.execution.ray_places import GROW_SECONDS, PATIENCE_SECONDS, can_grow_to

#: new tries of a call whose task was lost
RETRIES = 3
#: bytes of a file that travel as one object, and how many objects of a task may wait for the driver
PIECE = 8 << 20
WAITING = 4
#: calls that are handed to Ray at a time, for each CPU of the cluster: some wait, so that an autoscaler sees them
AHEAD = 2
#: seconds for tasks to end by themselves when nobody wants their results any more
CANCEL_SECONDS = 10

#: What is written to a call's folder: a file's path in it, and bytes to put at its end.
Piece = tuple[str, bytes]


@dataclass(frozen=True)
class Call:
    """Something to do on a free node.

    Attributes:
        name: of its folder, and for messages.
        fill: called with a folder that does not exist yet; makes it, and returns what went wrong, or nothing.
        cpus: that it uses by itself.
        cuda: whether it uses a GPU by itself.
        actors: CPUs that its own actors take, on whatever nodes; infinity for a call that wants to be alone.
    """

    name: str
    fill: Callable[[Path], str]
    cpus: int = 1
    cuda: bool = False
    actors: float = 0


@dataclass
class _Flight:
    """A call under way.

    Attributes:
        losses: how many tasks have been lost with it.
        folder: what has arrived of its folder.
        problem: what went wrong, once the task has said so; None before.
    """

    call: Call
    losses: int
    folder: Path
    problem: str | None = None
    _begun: set[str] = field(default_factory=set)

    def take(self, arrived: Piece | str) -> None:
        if isinstance(arrived, str):
            self.problem = arrived
            return
        name, data = arrived
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab" if name in self._begun else "wb") as file:
            file.write(data)
        self._begun.add(name)


def fill_folders(
    calls: Sequence[Call], into: Path, at_once: int | None, tell: Callable[[str], None]
) -> Iterator[tuple[str, str]]:
    """Carry out calls on the Ray that this process is connected to; yield (name, what went wrong) as they end.

    What a call left, if anything, is then in ``into / name``, in place of what was there before. Calls with actors of
    their own begin when the others are done, as many at a time as the cluster has CPUs for.

    Args:
        at_once: at most so many; None: as many as have room.
        tell: hears of lost tasks, and of waiting for room.

    Raises:
        InputError: when no node has room for a call, nor comes within GROW_SECONDS where there is an autoscaler; or
            when none can run it.
        RunError: when the disk is full, or cannot be written.
    """
    import ray

    missing = _no_room(calls)
    if missing and not can_grow_to():
        raise InputError(missing)
    deadline, told = time.monotonic() + GROW_SECONDS, False
    options = {"max_retries": 0, "num_returns": "streaming", "_generator_backpressure_num_objects": WAITING}
    task: Any = ray.remote(_pieces)
    queue = deque((call, 0) for call in sorted(calls, key=lambda call: call.actors > 0))
    flying: dict[Any, _Flight] = {}
    try:
        while queue or flying:
            while queue and _has_room(queue[0][0], [flight.call for flight in flying.values()], at_once):
                call, losses = queue.popleft()
                needs = {"num_cpus": 0 if call.actors else call.cpus, "num_gpus": _gpu_share(call, at_once)}
                flight = _Flight(call, losses, into / f".{call.name}.arriving")
                shutil.rmtree(flight.folder, ignore_errors=True)
                flying[task.options(**options, **needs).remote(call.fill, call.name)] = flight
            ready, _ = ray.wait(list(flying), num_returns=1, timeout=PATIENCE_SECONDS if missing else None)
            if not ready:
                if time.monotonic() > deadline:
                    raise InputError(f"{missing} (no such node came within {GROW_SECONDS} s)")
                if not told:
                    tell(f"Waiting for the cluster to grow: {missing}")
                    told = True
                missing = _no_room(calls)
                continue
            stream = ready[0]
            flight = flying[stream]
            loss = _advance(stream, flight)
            if loss is None and flight.problem is None:
                continue
            del flying[stream]
            if loss is not None and flight.losses < RETRIES:
                tell(f"{flight.call.name}: its task {loss}. Trying again ({flight.losses + 1} of {RETRIES} times)")
                queue.appendleft((flight.call, flight.losses + 1))
                continue
            _settle(flight.folder, into / flight.call.name)
            yield flight.call.name, flight.problem or (f"its task {loss} ({RETRIES} new tries)" if loss else "")
    except OSError as error:
        raise RunError(f"results could not be written to {into}: {error}") from error
    finally:
        _cancel(list(flying))
        for flight in flying.values():
            shutil.rmtree(flight.folder, ignore_errors=True)


def _pieces(fill: Callable[[Path], str], name: str) -> Iterator[Piece | str]:
    """Run in a task: fill a folder, send it, and say at last what went wrong."""
    with tempfile.TemporaryDirectory(prefix="simdist-") as above:
        folder = Path(above) / name
        problem = fill(folder)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                yield from _pieces_of(path, path.relative_to(folder).as_posix())
    yield problem


def _pieces_of(path: Path, name: str) -> Iterator[Piece]:
    with path.open("rb") as file:
        data = file.read(PIECE)
        yield name, data
        while data := file.read(PIECE):
            yield name, data


def _advance(stream: Any, flight: _Flight) -> str | None:
    """Take the next piece of a task. Return what became of the task if it is lost.

    Raises:
        InputError: when no node can run it.
    """
    import ray

    try:
        flight.take(ray.get(next(stream)))
    except StopIteration:
        flight.problem = flight.problem or "it ended without a word"
    except ray.exceptions.RuntimeEnvSetupError as error:
        raise InputError(
            f"got a Ray cluster whose nodes cannot take over this package and the working directory "
            f"({first_line(error)}); expected nodes with the same Python, Ray and torch as here"
        ) from error
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if not is_loss(cause):
            flight.problem = f"{type(cause).__name__}: {first_line(cause)}"
            return None
        return what_happened(cause, _HELPS)
    except ray.exceptions.WorkerCrashedError:
        return "died: its process was killed, or crashed"
    except ray.exceptions.RayError as error:
        if not is_loss(error):
            raise
        return what_happened(error, _HELPS)
    return None


_HELPS = "what helps: fewer points at a time (--parallel)"


def _settle(arrived: Path, target: Path) -> None:
    """Put what has arrived in its place."""
    if target.exists():
        shutil.rmtree(target)
    if arrived.exists():
        arrived.replace(target)


def _cancel(streams: Sequence[Any]) -> None:
    """End tasks: first they may tidy up."""
    import ray

    left = list(streams)
    for force, seconds in ((False, CANCEL_SECONDS), (True, 0)):
        for stream in left:
            ray.cancel(stream, force=force)
        if left and seconds:
            _, left = ray.wait([stream.completed() for stream in left], num_returns=len(left), timeout=seconds)


def _has_room(call: Call, others: Sequence[Call], at_once: int | None) -> bool:
    import ray

    if not others:
        return True
    if at_once is not None and len(others) >= at_once:
        return False
    cpus: float = max(ray.cluster_resources().get("CPU", 0), can_grow_to())
    if call.actors:
        return call.actors + sum(other.actors or other.cpus for other in others) <= cpus
    return len(others) < max(1, math.ceil(AHEAD * cpus))


def _gpu_share(call: Call, at_once: int | None) -> float:
    """Return how many GPUs a call takes: one, or a part where more calls are wanted at once than there are GPUs."""
    if not call.cuda:
        return 0
    import ray

    gpus = ray.cluster_resources().get("GPU", 0)
    return float(min(1.0, gpus / at_once)) if at_once else 1.0


def _no_room(calls: Sequence[Call]) -> str:
    """Say which call no node can take now, however free it is; Ray would wait for one for ever."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for call in calls:
        largest = max((node.get("CPU", 0) for node in nodes), default=0)
        if not call.actors and call.cpus > largest:
            return (
                f"engine.threads: got {call.cpus} for {call.name}, but the largest node of the Ray cluster has "
                f"{largest:g} CPUs; expected at most {largest:g}"
            )
        if call.cuda and not any(node.get("GPU", 0) for node in nodes):
            return "engine.device: got 'cuda', but the Ray cluster has no GPU; expected 'cpu'"
    return ""

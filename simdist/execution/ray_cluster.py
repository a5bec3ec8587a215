"""Ray itself: an embedded one on this machine, or a running cluster to attach to."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from simdist.errors import InputError
from simdist.execution.ray_shipping import runtime_env

#: Seconds to wait for a Ray address.
CONNECT_SECONDS = 15


def cores() -> int:
    """Return how many cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


def default_actors(device: str) -> int:
    """Return one actor per core of this machine, or per GPU when the tensors live there."""
    return max(1, torch.cuda.device_count()) if device == "cuda" else cores()


def connect(address: str | None, actors: int) -> bool:
    """Start an embedded Ray, or attach to a running one; return whether this call started it.

    The embedded one is quiet, keeps to loopback, has no dashboard, and as many CPU slots as there are actors, so that
    more actors than cores share the cores instead of waiting for ever. To a cluster this package and the working
    directory travel along (see :mod:`simdist.execution.ray_shipping`).

    Raises:
        InputError: when nothing answers at the address, or the working directory cannot travel.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    # errors of the peers of a lost actor, of which the first says it all
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    # a busy machine may take longer than the default half a minute to start Ray
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")
    if address is None:
        # Ray's own switch for "this machine only": its servers then listen on the loopback address, not on all
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    import ray

    if ray.is_initialized():
        return False
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    _news(shown=False)
    if address is None:
        # "local": without it Ray would attach to a cluster that happens to run on this machine
        ray.init("local", num_cpus=max(cores(), actors), include_dashboard=False, **quiet)
        return True
    host, _, port = address.removeprefix("ray://").partition(":")
    if port and not _answers(host, port):
        raise InputError(
            f"--ray-address: got {address!r}, where nothing answers within {CONNECT_SECONDS} s; "
            f"expected the address of a running Ray head (see `ray start --head`), or no address for an embedded Ray"
        )
    try:
        ray.init(address=address, runtime_env=runtime_env(), **quiet)
    except ray.exceptions.RuntimeEnvSetupError as error:
        with suppress(Exception):  # what has been opened of the connection; the error that counts is raised below
            disconnect()
        raise InputError(
            f"got the working directory {os.getcwd()!r}, which cannot be sent to the Ray cluster "
            f"({first_line(error)}); expected the folder of the scenario: run simdist there, or list in "
            ".rayignore what the nodes do not need"
        ) from error
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
        if started:
            disconnect()


def disconnect() -> None:
    """Leave a Ray that :func:`connect` has started or attached to; an embedded one ends."""
    import ray

    ray.shutdown()
    _news(shown=True)


def first_line(error: BaseException | None) -> str:
    """Return the first line of an error's message."""
    lines = str(error).strip().splitlines() if error else []
    return lines[0] if lines else type(error).__name__


def _news(shown: bool, _own: list[Any] = []) -> None:  # noqa: B006 - a list on purpose: it keeps Ray's own function
    """Have Ray print its own news of lost processes, tens of lines on stdout, or not: our errors say it in a sentence.

    There is no setting for it. Where a version of Ray does it otherwise, its news are printed.
    """
    import ray._private.worker as inside

    if not shown and not _own and hasattr(inside, "print_to_stdstream"):
        _own.append(inside.print_to_stdstream)
        inside.print_to_stdstream = lambda *_, **__: None
    elif shown and _own:
        inside.print_to_stdstream = _own.pop()


def _answers(host: str, port: str) -> bool:
    try:
        with socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS):
            return True
    except (OSError, ValueError):
        return False

"""What has happened to an actor that is gone, as far as Ray knows, in a sentence for people."""

from __future__ import annotations

import re
import socket
from typing import Any

from simdist.execution.ray_cluster import first_line

#: seconds for a node's Ray process to take a connection
ANSWER_SECONDS = 3

_LOW_ON_MEMORY = ("running low on memory", "memory pressure", "memory monitor")


def is_loss(error: BaseException | None) -> bool:
    """Return whether an error means that a process, a node or what it held is gone, and no mistake in a program."""
    from ray import exceptions

    lost = (
        exceptions.RayActorError,
        exceptions.OutOfMemoryError,
        exceptions.NodeDiedError,
        exceptions.LocalRayletDiedError,
        exceptions.WorkerCrashedError,
        exceptions.ObjectLostError,
        exceptions.RaySystemError,
    )
    return isinstance(error, lost)


def lost_touch(error: BaseException | None) -> bool:
    """Return whether an error in an actor may only follow from another one's end: a connection broke off."""
    return is_loss(error) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def what_happened(error: BaseException, helps: str, node: str | None = None) -> str:
    """Return what became of an actor, from the error that Ray gave.

    Args:
        helps: what to do about too little memory.
        node: id of the node that it was on: if that is gone, Ray itself may take a quarter of a minute to notice.
    """
    from ray import exceptions

    text = str(error)
    if isinstance(error, exceptions.OutOfMemoryError) or any(words in text for words in _LOW_ON_MEMORY):
        used = re.search(r"was\s+(\S+) used / (\S+) limit", text)
        full = f" ({used[1]} of {used[2]} used)" if used else ""
        return f"was killed by Ray's memory monitor: its node{_address(text)} ran out of memory{full}; {helps}"
    if (gone := None if node is None else gone_node(node)) is not None:
        return f"died with its node {gone}, which does not answer any more"
    if isinstance(error, exceptions.ActorUnavailableError):
        return "cannot be reached any more (its process or its node is gone)"
    if isinstance(error, exceptions.ActorDiedError):
        return _how_it_died(text)
    if isinstance(error, exceptions.LocalRayletDiedError):
        return "is lost with the Ray node that this process was connected to"
    if isinstance(error, exceptions.ObjectLostError):
        return "asked for a tensor that is lost with the process that held it"
    return f"is lost ({first_line(error)})"


def gone_node(node: str) -> str | None:
    """Return the address of a node if Ray has given it up, or its Ray process does not answer; None while it does."""
    import ray

    known = next((each for each in ray.nodes() if each["NodeID"] == node), None)
    if known is None:
        return f"of id {node[:8]}"
    where: str = known["NodeManagerAddress"]
    if known["Alive"]:
        try:
            socket.create_connection((where, known["NodeManagerPort"]), timeout=ANSWER_SECONDS).close()
        except OSError:
            return where
        return None
    return where


def refusal(error: BaseException) -> str | None:
    """Return why an actor could not be made at all, such as a library that a node lacks; None for other errors."""
    return quoted_error(error) if getattr(error, "actor_init_failed", False) else None


def quoted_error(error: BaseException) -> str:
    """Return the error that an error of Ray quotes with its traceback: the last line that begins with one's name."""
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    return next((line for line in reversed(lines) if re.match(r"[\w.]+(Error|Exception|Interrupt)\b", line)), lines[-1])


def _how_it_died(text: str) -> str:
    where = _address(text)
    if "node has died" in text or "node was terminated" in text or "NODE_DIED" in text:
        return f"died with its node{where}, which is gone"
    if "ray.kill" in text or "INTENDED_USER_EXIT" in text:
        return f"died{where}: somebody ended it through Ray"
    pid = re.search(r"^\s*pid: (\d+)", text, re.MULTILINE)
    process = f" (process {pid[1]}{where})" if pid else where
    return f"died{process}: it was killed, or crashed (dmesg there says if the system ran out of memory)"


def _address(text: str) -> str:
    found = re.search(r"(?:^\s*ip: |IP: |ip=)([\w.:]+)", text, re.MULTILINE)
    return f" on {found[1].rstrip(',.')}" if found else ""


def oldest(errors: dict[int, Any]) -> int:
    """Return the actor whose end explains the others': one that died rather than one that cannot be reached."""
    from ray import exceptions

    return min(errors, key=lambda actor: (isinstance(errors[actor], exceptions.ActorUnavailableError), actor))

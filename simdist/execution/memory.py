"""Out of memory, in the words of whoever ran out: how it is recognised, and what a user can do about it."""

from __future__ import annotations

import errno

import torch

#: how torch's CPU allocator says it: a plain RuntimeError
_CPU_ALLOCATOR = "can't allocate memory"


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether memory ran out: Python's, NumPy's and Arrow's MemoryError, torch's on CPU or GPU, the system's.

    >>> is_out_of_memory(MemoryError()), is_out_of_memory(ValueError("memory"))
    (True, False)
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and _CPU_ALLOCATOR in str(error)


def wanted(error: BaseException | None) -> str:
    """Return what was asked for, in the allocator's own words, as `` (...)``; empty where it says nothing.

    >>> wanted(MemoryError()), wanted(MemoryError("Unable to allocate 8.0 TiB"))
    ('', ' (Unable to allocate 8.0 TiB)')
    """
    text = str(error or "").strip().partition("\n")[0]
    at = text.find("DefaultCPUAllocator")  # after the place in torch's own sources
    text = text[max(at, 0) :].removeprefix("DefaultCPUAllocator: ").partition(" Error code ")[0].rstrip(" .")
    return f" ({text})" if text else ""


def what_helps(stacked: bool, chunk: int | None, processes: int) -> str:
    """Return what to set, for the end of a message.

    Args:
        stacked: whether workers run as stacked cohorts.
        chunk: ``engine.chunk``, workers whose gradients a cohort computes at a time.
        processes: how many processes hold workers.

    >>> what_helps(True, 64, 1)
    'what helps: engine.chunk below 64, a smaller workload.batch or model'
    """
    if not stacked:
        helps = ["engine.name 'stacked' (with Ray: engine.block 'stacked'), which holds once what workers share"]
    elif chunk is None:
        helps = ["a small engine.chunk, such as 1"]
    elif chunk > 1:
        helps = [f"engine.chunk below {chunk}"]
    else:
        helps = []
    helps.append("a smaller workload.batch or model")
    if processes > 1:
        helps.append(
            f"fewer engine.actors on a machine (here {processes} in all; each is a process with a copy of the data)"
        )
    return f"what helps: {', '.join(helps)}"

"""The exceptions that a user may meet, each with the exit status that the command line gives it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SimdistError(Exception):
    """Base class: a message for people (what was got, what was expected, what to write instead)."""

    exit_status = 3


class InputError(SimdistError, ValueError):
    """The scenario, a command-line value or a file is wrong; nothing has been run (exit status 2)."""

    exit_status = 2


class RunError(SimdistError, RuntimeError):
    """The run itself failed (exit status 3): what failed, at which step, what was saved."""

    exit_status = 3


class WorkersLost(RunError):
    """Processes that held workers are gone (killed, their node lost, out of memory): a fresh set may go on.

    A run goes on by itself from its last checkpoint, ``engine.retries`` times at most.
    """


class ProgramError(RunError):
    """A worker program broke a rule of the engine (workers disagree on a collective, bad shape, ...)."""


class DeadlockError(ProgramError):
    """No worker can wake any more; the message lists every waiting worker and what it waits for."""


def suggest(got: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest known word, or an empty string.

    >>> suggest("sharts", ["shards", "replicas"])
    " Did you mean 'shards'?"
    """
    near = difflib.get_close_matches(got, list(known), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""

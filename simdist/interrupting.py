"""Ctrl-C and SIGTERM while a run can be saved: the step under way is finished first; once more, and it ends at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Interruption:
    """Whether somebody wants the run to stop.

    Attributes:
        wanted: the signal's name, once one has come in.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.wanted: str | None = None
        self._tell = tell

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Note signals instead of raising KeyboardInterrupt in the middle of a step, until the block ends.

        Signals that are ignored stay so (a shell's background jobs). Only a program's main thread hears any.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[signal.Signals, Any] = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            # None: somebody else's C code, which could not be put back
            if handler is not signal.SIG_IGN and handler is not None:
                before[number] = signal.signal(number, self._hear)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.wanted is not None:
            raise KeyboardInterrupt
        self.wanted = signal.Signals(number).name
        self._tell(f"{self.wanted}: finishing the step under way, then saving; once more stops at once")

"""The only place where a worker program suspends: all else calls these two functions."""

from __future__ import annotations

import types
from collections.abc import Generator
from typing import Any

from simdist.program.requests import Request, Wave


@types.coroutine
def ask_wave(wave: Wave) -> Generator[Wave, tuple[Any, ...], tuple[Any, ...]]:
    """Put several requests in flight together; return their answers in order once all are complete."""
    answers = yield wave
    return answers


async def ask(request: Request) -> Any:
    """Ask for one thing and wait for its answer."""
    (answer,) = await ask_wave((request,))
    return answer

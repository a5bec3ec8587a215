"""``together``: programs side by side, wave by wave."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import pytest

from simdist.program import together
from simdist.program.ask import ask, ask_wave
from simdist.program.requests import Sleep, Wave


async def naps(*seconds: float) -> list[Any]:
    """Sleep several times in a row and return the answers."""
    return [await ask(Sleep(each)) for each in seconds]


async def wide(*seconds: float) -> tuple[Any, ...]:
    """Put several requests in flight at once."""
    return await ask_wave(tuple(Sleep(each) for each in seconds))


async def fail_after(rounds: int) -> None:
    await naps(*[0.0] * rounds)
    raise RuntimeError("a worker's own mistake")


def drive(program: Coroutine[Any, Any, Any]) -> tuple[Any, list[list[float]]]:
    """Answer every request with its own seconds; return the result and the waves."""
    waves: list[list[float]] = []
    answer: tuple[Any, ...] | None = None
    while True:
        try:
            wave: Wave = program.send(answer)
        except StopIteration as stop:
            return stop.value, waves
        waves.append([request.seconds for request in wave if isinstance(request, Sleep)])
        answer = tuple(waves[-1])


def test_a_round_is_one_wave() -> None:
    result, waves = drive(together(naps(1, 2, 3), naps(4), naps(5, 6)))
    assert waves == [[1, 4, 5], [2, 6], [3]]
    assert result == [[1, 2, 3], [4], [5, 6]]


def test_programs_that_ask_for_nothing_cost_no_wave() -> None:
    assert drive(together(naps(), naps())) == ([[], []], [])
    assert drive(together()) == ([], [])
    assert drive(together(naps(), naps(7))) == ([[], [7]], [[7]])


def test_wide_waves_find_their_way_back() -> None:
    result, waves = drive(together(wide(1, 2), naps(3), wide(4, 5, 6)))
    assert waves == [[1, 2, 3, 4, 5, 6]]
    assert result == [(1, 2), [3], (4, 5, 6)]


def test_nested_waves_merge() -> None:
    result, waves = drive(together(together(naps(1, 2), naps(3)), naps(4, 5)))
    assert waves == [[1, 3, 4], [2, 5]]
    assert result == [[[1, 2], [3]], [4, 5]]


def test_an_error_closes_all_the_others() -> None:
    """None is left waiting: Python would warn of a coroutine that was never awaited, and warnings are errors."""
    others = [naps(1, 2, 3), naps(1, 2, 3)]
    with pytest.raises(RuntimeError, match="own mistake"):
        drive(together(others[0], fail_after(1), others[1]))
    for other in others:
        with pytest.raises(RuntimeError, match="already awaited"):
            other.send(None)


def test_closing_from_outside_closes_all() -> None:
    others = [naps(1, 2), naps(3)]
    program = together(*others)
    program.send(None)
    program.close()
    for other in others:
        with pytest.raises(RuntimeError, match="already awaited"):
            other.send(None)

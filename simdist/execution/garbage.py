"""Python's collector of reference cycles, kept from going over thousands of waiting workers again and again."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_NEVER = 2**30


@contextmanager
def only_young() -> Iterator[None]:
    """Collect young objects only, until the block ends.

    A collection of the oldest generation walks through all that is alive, which in the middle of a step is all
    coroutines and what they hold: for 4,096 workers they took a third of a step. Between steps little is left of it.
    Cycles that die young, as a worker's in its own pass do, are still found at once.
    """
    young, middle, old = gc.get_threshold()
    gc.set_threshold(young, middle, _NEVER)
    try:
        yield
    finally:
        gc.set_threshold(young, middle, old)

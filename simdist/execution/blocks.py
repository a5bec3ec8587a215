"""How many workers go into each block, and how many blocks there are."""

from __future__ import annotations

import itertools


def split_into_blocks(workers: int, actors: int | None, workers_per_actor: int | None, default: int) -> list[range]:
    """Deal workers out to actors in contiguous blocks.

    With ``workers_per_actor`` the last block may be smaller; with ``actors`` (or ``default``) sizes differ by one.

    >>> split_into_blocks(8, None, 3, 2)
    [range(0, 3), range(3, 6), range(6, 8)]
    >>> split_into_blocks(8, 3, None, 2)
    [range(0, 3), range(3, 6), range(6, 8)]
    """
    if workers_per_actor is not None:
        return [range(a, min(a + workers_per_actor, workers)) for a in range(0, workers, workers_per_actor)]
    count = min(actors or default, workers)
    edges = [-(-workers * i // count) for i in range(count + 1)]
    return [range(a, b) for a, b in itertools.pairwise(edges)]

"""Closed forms of the bytes of Dion2 and Dion3, straight from card 4: see ``byte_forms.py``."""

from __future__ import annotations

from math import ceil

from simdist.optimizers import MeshShape
from tests.optimizers.byte_forms import WIDTH, Form, dealt, ring, rows


def submatrix(
    fraction: float, *, whole: bool = False, columns: bool = False, norms: int = 0, back: bool = True
) -> Form:
    """All-to-alls of what is chosen over shards, or an all-gather of the results under DDP.

    Args:
        fraction: alpha; ceil(alpha rows) rows of every shard are chosen, ceil(alpha m) of a whole matrix.
        whole: the global scope, in which all rows travel.
        columns: without shards slices lie along the shorter side, and are columns where m > n.
        norms: statistics a matrix that are all-reduced over shards.
        back: owners send results back; else shards are all-gathered and nothing returns.
    """

    def form(m: int, n: int, matrices: int, mesh: MeshShape) -> float:
        f, c = mesh.shards, dealt(matrices, mesh) if back else matrices
        if f == 1:
            chosen = m * ceil(fraction * n) if columns and m > n else ceil(fraction * m) * n
            return WIDTH * ring(mesh.replicas) * c * chosen if back else 0.0
        sent = (rows(m, mesh) if whole else ceil(fraction * rows(m, mesh))) * n
        return WIDTH * (ring(f) * c * sent * (2 if back else f) + 2 * ring(f) * c * norms)

    return form

"""Closed forms of the bytes of the AdaDion family at a fixed width, straight from card 2: see ``byte_forms.py``."""

from __future__ import annotations

from simdist.optimizers import MeshShape
from tests.optimizers.byte_forms import WIDTH, Form, dealt, low_rank, ring, rows


def adaptive(k: int, *, modes: bool = False, per_matrix: int = 0) -> Form:
    """Dion with k columns, and what controls them.

    Args:
        k: the common width of the factors.
        modes: V3's: two numbers a mode over shards, and G U averaged over compressed replicas.
        per_matrix: numbers a matrix that are summed over shards, and averaged over compressed replicas.
    """
    dion = low_rank(k, lambda r: r)

    def form(m: int, n: int, matrices: int, mesh: MeshShape) -> float:
        more = 2 * ring(mesh.shards) * (2 * k * modes + per_matrix)
        if mesh.replicas > 1 and (m + n) * k < m * n:
            more += 2 * ring(mesh.replicas) * (rows(m, mesh) * k * modes + per_matrix)
        return dion(m, n, matrices, mesh) + WIDTH * dealt(matrices, mesh) * more

    return form

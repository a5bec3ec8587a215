"""Closed forms of the bytes of low-rank rules whose right factor is not made from all-reduced statistics (card 1)."""

from __future__ import annotations

from simdist.optimizers import MeshShape
from tests.optimizers.byte_forms import WIDTH, Form, dealt, low_rank, ring, rows


def owned_right_factor(r: int) -> Form:
    """As Dion, with W to its owners and Vbar back in place of statistics."""
    plain = low_rank(r, lambda r: 0)

    def form(m: int, n: int, matrices: int, mesh: MeshShape) -> float:
        both_ways = 2 * ring(mesh.shards) * rows(m, mesh) * r
        return plain(m, n, matrices, mesh) + WIDTH * dealt(matrices, mesh) * both_ways

    return form


def exact_pairs(r: int, owners: bool) -> Form:
    """The oracle: M gathered by everybody, or brought to owners who send both factors."""

    def form(m: int, n: int, matrices: int, mesh: MeshShape) -> float:
        c, f, mine = dealt(matrices, mesh), mesh.shards, rows(m, mesh)
        if not owners:
            return WIDTH * ring(f) * c * f * mine * n
        if f > 1:
            return WIDTH * ring(f) * c * (mine * n + n * r + mine * r)
        return WIDTH * ring(mesh.replicas) * c * (m + n) * r

    return form


def averaged_buffers(r: int, every: int, plain: Form) -> Form:
    """``plain``, and compressed replicas' buffers averaged once in ``every`` steps."""

    def form(m: int, n: int, matrices: int, mesh: MeshShape) -> float:
        compressed = (m + n) * r < m * n
        average = 2 * ring(mesh.replicas) * rows(m, mesh) * n if compressed else 0
        return plain(m, n, matrices, mesh) + WIDTH * dealt(matrices, mesh) * average / every

    return form

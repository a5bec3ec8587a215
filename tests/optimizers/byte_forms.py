"""Closed forms of the bytes that a rule sends, straight from the cards: per worker and step, four bytes a number.

A form is a function of the full shape (m, n), the number of real matrices in the stack, and the mesh. Dummies and
padding rows count, since their bytes are real (card 0). Factors and statistics are both four bytes wide here.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

from simdist.optimizers import MeshShape

#: ``form(m, n, matrices, mesh)``: optimizer bytes sent per worker and step for one stack
Form = Callable[[int, int, int, MeshShape], float]

WIDTH = 4


def ring(k: int) -> float:
    """Share of a message that one of k members sends in half an all-reduce; zero for one member."""
    return (k - 1) / k


def rows(m: int, mesh: MeshShape) -> int:
    """Rows of one worker's shard, padding included."""
    return ceil(m / mesh.shards)


def dealt(matrices: int, mesh: MeshShape) -> int:
    """Length of a stack whose matrices are dealt out to owners, dummies included."""
    return ceil(matrices / mesh.owners) * mesh.owners


def nothing(m: int, n: int, matrices: int, mesh: MeshShape) -> float:
    """Elementwise rules, and rules that repeat all work, send nothing beyond the base traffic."""
    return 0.0


def low_rank(r: int, statistics: Callable[[int], float]) -> Form:
    """Cards 1 and 3: P by reduce-scatter and all-gather, W averaged over replicas, the right factor's statistics.

    ``statistics(r)`` is how many numbers a matrix's right factor all-reduces over shards: r for column norms, r^2
    for each pass of Cholesky-QR. Replicas exchange factors where these are smaller than the gradient.
    """

    def form(m: int, n: int, matrices: int, mesh: MeshShape) -> float:
        c, f, w = dealt(matrices, mesh), mesh.shards, mesh.replicas
        compressed = w > 1 and (m + n) * r < m * n
        if f == 1:
            return WIDTH * c * (2 * ring(w) * (m + n) * r if compressed else ring(w) * n * r)
        sent = 2 * ring(f) * (n * r + statistics(r))
        if compressed:
            sent += 2 * ring(w) * (n / f + rows(m, mesh)) * r
        return WIDTH * c * sent

    return form


def gathered_right_factor(r: int) -> Form:
    """``qr_raw``: as Dion, with an all-gather of W's rows in place of statistics."""
    plain = low_rank(r, lambda r: 0)

    def form(m: int, n: int, matrices: int, mesh: MeshShape) -> float:
        gathered = ring(mesh.shards) * mesh.shards * rows(m, mesh) * r
        return plain(m, n, matrices, mesh) + WIDTH * dealt(matrices, mesh) * gathered

    return form


def muon_owner(m: int, n: int, matrices: int, mesh: MeshShape) -> float:
    """Card 5: two all-to-alls of the owners' form over shards, or an all-gather of results under DDP."""
    c = dealt(matrices, mesh)
    if mesh.shards > 1:
        return WIDTH * 2 * ring(mesh.shards) * c * rows(m, mesh) * n
    return WIDTH * ring(mesh.replicas) * c * m * n


def gather(m: int, n: int, matrices: int, mesh: MeshShape) -> float:
    """Card 5: an all-gather of the whole matrices over shards, nothing back."""
    return WIDTH * ring(mesh.shards) * matrices * mesh.shards * rows(m, mesh) * n

"""Closed forms of the bytes of rules that send encoded messages, cards 12 and 16: see ``byte_forms.py``.

Messages are bytes as they are; only real matrices have any.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

from simdist.optimizers import MeshShape
from tests.optimizers.byte_forms import WIDTH, Form, muon_owner, ring, rows


def gathered(message: Callable[[int, int], int]) -> Form:
    """Every replica's message of its rows x n numbers to all others, and Muon's traffic."""

    def form(m: int, n: int, matrices: int, mesh: MeshShape) -> float:
        sent = matrices * (mesh.replicas - 1) * message(rows(m, mesh), n)
        return sent + muon_owner(m, n, matrices, mesh)

    return form


def dense_then_signs(m: int, n: int, matrices: int, mesh: MeshShape) -> float:
    """1-bit Adam with two of four steps for its warm-up: an all-reduce; then slices of signs to owners and back."""
    numbers, members = rows(m, mesh) * n, mesh.replicas
    signs = 2 * (members - 1) * (ceil(ceil(numbers / members) / 8) + 4)
    return matrices * (2 * ring(members) * WIDTH * numbers + signs) / 2

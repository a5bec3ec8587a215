"""Random streams keyed by (seed, what for, worker, step): the same draws on every engine and any number of actors."""

from __future__ import annotations

import hashlib

import torch


def stream(seed: int, purpose: str, worker: int | None = None, step: int | None = None) -> torch.Generator:
    """Return a CPU generator whose state depends on its keys alone.

    ``worker`` None means a stream that all workers share (initial weights, the start of a low-rank basis).
    """
    key = f"{seed}/{purpose}/{worker}/{step}".encode()
    number = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1
    return torch.Generator().manual_seed(number)


def normal(
    shape: tuple[int, ...], seed: int, purpose: str, worker: int | None = None, step: int | None = None
) -> torch.Tensor:
    """Draw float64 standard normals from the keyed stream (float64, so that every dtype sees the same numbers)."""
    return torch.randn(shape, generator=stream(seed, purpose, worker, step), dtype=torch.float64)

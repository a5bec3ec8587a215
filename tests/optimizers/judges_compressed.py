"""Dense versions of the rules that send compressed messages, straight from cards 12 and 16: lists of replicas, no mesh.

Rows are cut in as many blocks as there are shards, filled up with zeros, since messages are made of one worker's rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil

import torch
from torch import Tensor

from simdist.optimizers import MeshShape
from tests.optimizers.harness import Gradient

Compressor = Callable[[Tensor], Tensor]


def per_replica(gradient: Gradient, name: str, step: int, mesh: MeshShape) -> list[Tensor]:
    """What each replica's shard group sees, averaged over the group."""
    groups = [mesh.group("shards", replica * mesh.shards) for replica in range(mesh.replicas)]
    return [torch.stack([gradient(name, step, worker) for worker in group]).mean(0) for group in groups]


def topk(share: float) -> Compressor:
    def compress(x: Tensor) -> Tensor:
        kept = x.abs().flatten().topk(ceil(share * x.numel())).indices
        found = torch.zeros_like(x).flatten()
        found[kept] = x.flatten()[kept]
        return found.reshape(x.shape)

    return compress


def signs(x: Tensor) -> Tensor:
    """The mean size, rounded to single precision, times the sign; that of zero is one."""
    return x.abs().mean().float().double() * torch.where(x < 0, -1.0, 1.0).double()


def in_slices(x: Tensor, slices: int, compress: Compressor) -> Tensor:
    """Every one of so many slices of equal length is a message of its own."""
    size = ceil(x.numel() / slices)
    padded = torch.zeros(slices * size, dtype=x.dtype)
    padded[: x.numel()] = x.flatten()
    return torch.cat([compress(part) for part in padded.split(size)])[: x.numel()].reshape(x.shape)


class PowerStep:
    """A rank-r projection by one power step from the last right factor."""

    def __init__(self, start: Tensor) -> None:
        self.right = start

    def __call__(self, x: Tensor) -> Tensor:
        left = torch.linalg.qr(x @ self.right)[0]
        if not x.any():
            return torch.zeros_like(x)
        self.right = x.T @ left
        return left @ self.right.T


def blocks(x: Tensor, shards: int) -> list[Tensor]:
    rows = ceil(x.shape[0] / shards)
    padded = torch.zeros(rows * shards, *x.shape[1:], dtype=x.dtype)
    padded[: x.shape[0]] = x
    return list(padded.split(rows))


def by_blocks(x: Tensor, compress: Sequence[Compressor]) -> Tensor:
    parts = [one(part) for one, part in zip(compress, blocks(x, len(compress)), strict=True)]
    return torch.cat(parts)[: x.shape[0]]


def ef21_muon(
    x: Tensor,
    grads: list[list[Tensor]],
    orthogonal: Callable[[Tensor], Tensor],
    compress: list[list[Compressor]],
    server: list[Compressor] | None = None,
    *,
    lr: float,
    weight_decay: float,
    mu: float,
    scale: float,
    dense: bool,
) -> Tensor:
    """Return W; ``grads[step][replica]``, ``compress[replica][shard]``, ``server[shard]``."""
    momentum = [torch.zeros_like(x) for _ in compress]
    own = [torch.zeros_like(x) for _ in compress]
    estimate, w = torch.zeros_like(x), x
    for step, each in enumerate(grads):
        momentum = [mu * m + (1 - mu) * g for m, g in zip(momentum, each, strict=True)]
        if dense and step == 0:
            own, estimate = momentum, sum(momentum, torch.zeros_like(x)) / len(momentum)
        else:
            sent = [by_blocks(m - g, c) for m, g, c in zip(momentum, own, compress, strict=True)]
            own = [g + r for g, r in zip(own, sent, strict=True)]
            estimate = estimate + sum(sent, torch.zeros_like(x)) / len(sent)
        x = (1 - lr * weight_decay) * x - lr * scale * orthogonal(estimate)
        w = x if server is None else w + by_blocks(x - w, server)
    return w


def onebit_adam(
    x: Tensor,
    grads: list[list[Tensor]],
    compress: Compressor,
    *,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
    warmup: int,
    shards: int,
) -> Tensor:
    """Return x; ``grads[step][replica]``."""
    cut = [[blocks(g, shards) for g in each] for each in grads]
    parts = []
    for f, block in enumerate(blocks(x, shards)):
        mine = [[g[f].flatten() for g in each] for each in cut]
        parts.append(_onebit_block(block.flatten(), mine, compress, lr, weight_decay, betas, eps, warmup))
    return torch.cat(parts)[: x.numel()].reshape(x.shape)


def _onebit_block(
    x: Tensor,
    grads: list[list[Tensor]],
    compress: Compressor,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
    warmup: int,
) -> Tensor:
    replicas, (b1, b2) = len(grads[0]), betas
    m, v = torch.zeros_like(x), torch.zeros_like(x)
    errors, sum_error = [torch.zeros_like(x) for _ in range(replicas)], torch.zeros_like(x)
    for t, each in enumerate(grads, 1):
        if t <= warmup:
            g = sum(each, torch.zeros_like(x)) / replicas
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        else:
            real = v > 0
            wanted = [(b1 * m + (1 - b1) * g + e) * real for g, e in zip(each, errors, strict=True)]
            sent = [in_slices(p, replicas, compress) * real for p in wanted]
            errors = [p - c for p, c in zip(wanted, sent, strict=True)]
            back = sum(sent, torch.zeros_like(x)) / replicas + sum_error
            m = in_slices(back, replicas, compress) * real
            sum_error = back - m
        corrected = v / (1 - b2 ** min(t, warmup))
        x = (1 - lr * weight_decay) * x - lr * (m / (1 - b1**t)) / (corrected.sqrt() + eps)
    return x

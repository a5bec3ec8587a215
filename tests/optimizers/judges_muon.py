"""Dense single-worker versions of Muon's relatives in float64, written straight from cards 5 to 7."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Orthogonal = Callable[[Tensor], Tensor]


def polar(m: Tensor) -> Tensor:
    """(M M^T)^(-1/2) M, from the eigenvalues of the smaller Gram matrix."""
    if m.shape[0] > m.shape[1]:
        return polar(m.T).T
    values, vectors = torch.linalg.eigh(m @ m.T)
    return vectors @ torch.diag(values.rsqrt()) @ vectors.T @ m


def directions(grads: list[Tensor], mu: float, ema: bool, nesterov: bool) -> Iterator[Tensor]:
    m = torch.zeros_like(grads[0])
    for g in grads:
        part = (1 - mu) * g if ema else g
        m = mu * m + part
        yield part + mu * m if nesterov else m


def muon_bp(
    x: Tensor,
    grads: list[Tensor],
    orthogonal: Orthogonal,
    *,
    lr: float,
    block_lr: float,
    weight_decay: float,
    mu: float,
    period: int,
    rows: int,
    scale: Callable[[int, int], float],
) -> Tensor:
    """Card 5: blocks of ``rows`` rows but in every step t with t mod period = 0."""
    m, n = x.shape
    for t, d in enumerate(directions(grads, mu, ema=False, nesterov=False)):
        if t % period == 0:
            x = (1 - lr * weight_decay) * x - lr * scale(m, n) * orthogonal(d)
        else:
            blocks = torch.cat([orthogonal(d[i : i + rows]) for i in range(0, m, rows)])
            x = (1 - lr * weight_decay) * x - block_lr * scale(rows, n) * blocks
    return x


def normuon(
    x: Tensor,
    grads: list[Tensor],
    orthogonal: Orthogonal,
    *,
    lr: float,
    weight_decay: float,
    mu: float,
    beta2: float,
    scale: float,
    rows: int,
) -> Tensor:
    """Card 6, code form: Ohat is brought to O's norm, in blocks of ``rows`` rows (all of them: exact)."""
    v = torch.zeros(x.shape[0], dtype=x.dtype)
    for d in directions(grads, mu, ema=False, nesterov=False):
        o = orthogonal(d)
        v = beta2 * v + (1 - beta2) * (o**2).mean(dim=1)
        hat = o / (v.sqrt() + 1e-8)[:, None]
        for i in range(0, len(v), rows):
            hat[i : i + rows] *= o[i : i + rows].norm() / hat[i : i + rows].norm()
        x = (1 - lr * weight_decay) * x - lr * scale * hat
    return x


def normuon_paper(
    x: Tensor, grads: list[Tensor], orthogonal: Orthogonal, *, lr: float, weight_decay: float, mu: float, beta2: float
) -> Tensor:
    """Card 6, paper form: a step of .2 lr sqrt(mn) / ||Ohat||_F."""
    v = torch.zeros(x.shape[0], dtype=x.dtype)
    for d in directions(grads, mu, ema=True, nesterov=False):
        o = orthogonal(d)
        v = beta2 * v + (1 - beta2) * (o**2).mean(dim=1)
        hat = o / (v.sqrt() + 1e-8)[:, None]
        x = x - lr * weight_decay * x - 0.2 * lr * math.sqrt(x.numel()) / hat.norm() * hat
    return x


def top_pairs(m: Tensor, k: int) -> Tensor:
    """The k leading singular pairs, from the eigenvectors of M^T M: sum of (M v / |M v|) v^T."""
    _, vectors = torch.linalg.eigh(m.T @ m)
    v = vectors[:, -k:]
    u = m @ v
    return (u / u.norm(dim=0)) @ v.T


def krylov_pairs(m: Tensor, k: int, start: Tensor, q: int) -> Tensor:
    """Best k pairs inside the span of [A S, (A A^T) A S, ...], A the wide one of M and M^T; plain powers."""
    if m.shape[0] > m.shape[1]:
        return krylov_pairs(m.T, k, start, q).T
    blocks = [torch.linalg.matrix_power(m @ m.T, i) @ m @ start for i in range(q + 1)]
    u, s, _ = torch.linalg.svd(torch.cat(blocks, dim=1), full_matrices=False)
    basis = u[:, s > 1e-13 * s[0]]
    return basis @ top_pairs(basis.T @ m, k)


def numuon(
    x: Tensor,
    grads: list[Tensor],
    pairs: Callable[[Tensor, int, int], Tensor],
    *,
    lr: float,
    weight_decay: float,
    mu: float,
    nesterov: bool,
    ranks: list[int],
    scale: Callable[[int], float],
) -> Tensor:
    """Card 7; ``pairs(M, k, step)`` and ``scale(k)``."""
    for step, (k, d) in enumerate(zip(ranks, directions(grads, mu, ema=True, nesterov=nesterov), strict=True)):
        x = (1 - lr * weight_decay) * x - lr * scale(k) * pairs(d, k, step)
    return x

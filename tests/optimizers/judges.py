"""Dense single-worker update rules in float64, written straight from the cards: the judges of the sharded ones.

Each takes a matrix X (m x n, fan_out x fan_in), a list of gradients, and returns the final X; the low-rank ones also
say what happened on the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from simdist.optimizers.right_factor import RightFactorSettings


@dataclass
class Trace:
    x: Tensor
    buffers: list[Tensor] = field(default_factory=list)
    left: list[Tensor] = field(default_factory=list)
    right: list[Tensor] = field(default_factory=list)


def householder_positive(w: Tensor) -> Tensor:
    q, r = torch.linalg.qr(w)
    signs = torch.where(r.diagonal() >= 0, 1.0, -1.0).to(w)
    return q * signs


def householder_raw(w: Tensor) -> Tensor:
    return torch.linalg.qr(w)[0]


def unit_columns(w: Tensor) -> Tensor:
    return w / (torch.linalg.vector_norm(w, dim=0) + 1e-8)


def inverse_root(symmetric: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(symmetric)
    return vectors @ torch.diag(values.rsqrt()) @ vectors.T


def polar(w: Tensor) -> Tensor:
    return w @ inverse_root(w.T @ w)


def interpolated(w: Tensor, tau: float) -> Tensor:
    gram = w.T @ w
    return w @ inverse_root((1 - tau) * gram.diagonal().diag() + tau * gram)


def by_blocks(w: Tensor, block: int, signs: str) -> Tensor:
    qr = householder_positive if signs == "fixed" else householder_raw
    return torch.cat([qr(part) for part in w.split(block, dim=1)], dim=1)


RIGHT = {"qr_pos": householder_positive, "qr_raw": householder_raw, "colnorm": unit_columns, "polar": polar}


def right_factor_of(rule: RightFactorSettings) -> Callable[[Tensor], Tensor]:
    """The right factor that a rule's settings ask for."""
    if rule.right_factor == "interp":
        return lambda w: interpolated(w, rule.tau or 0.0)
    if rule.right_factor == "block_qr":
        return lambda w: by_blocks(w, rule.block or 0, rule.signs)
    return RIGHT[rule.right_factor]


def ky_fan_pairs(m: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """The r largest singular pairs: left (rows' side) and right (columns' side) vectors."""
    u, _, vt = torch.linalg.svd(m, full_matrices=False)
    return u[:, :r], vt[:r].T


def orth_dion(
    x: Tensor,
    grads: list[Tensor],
    v: Tensor,
    *,
    lr: float,
    weight_decay: float,
    scale: float,
    error_feedback: str,
    beta: float,
    right_factor: str | Callable[[Tensor], Tensor],
) -> Trace:
    """Card 1 on M^T: U is n x r, V is m x r; with right_factor "exact_svd" both are the largest singular pairs of M."""
    r = torch.zeros_like(x)
    trace = Trace(x)
    for g in grads:
        m = g + r
        if right_factor == "exact_svd":
            v, u = ky_fan_pairs(m, v.shape[1])
        else:
            u = torch.linalg.qr(m.T @ v)[0]
            v = (RIGHT[right_factor] if isinstance(right_factor, str) else right_factor)(m @ u)
        x = (1 - lr * weight_decay) * x - lr * scale * v @ u.T
        r = beta * (m - m @ u @ u.T) if error_feedback == "paper" else m - beta * m @ u @ u.T
        trace.buffers.append(r)
        trace.left.append(u)
        trace.right.append(v)
    trace.x = x
    return trace


def dion(x: Tensor, grads: list[Tensor], q: Tensor, *, lr: float, weight_decay: float, mu: float) -> Tensor:
    """Microsoft's Dion mathematics (card 3), re-derived on the transposed matrix with QR for its RCQR."""
    scale = math.sqrt(x.shape[0] / x.shape[1])
    xt, momentum = x.T.clone(), torch.zeros_like(x.T)
    for g in grads:
        momentum = momentum + g.T
        p = torch.linalg.qr(momentum @ q)[0]
        r = momentum.T @ p
        momentum = momentum - (1 - mu) * p @ r.T
        q = r / (r.norm(dim=0, keepdim=True) + 1e-8)
        xt = xt * (1 - lr * weight_decay)
        xt = xt - lr * scale * p @ q.T
    return xt.T


def polar_polynomial(u: Tensor, steps: list[tuple[float, float, float]], margin: float, eps: float) -> Tensor:
    y = u.T if u.shape[0] > u.shape[1] else u
    y = y / (margin * y.norm() + eps)
    for a, b, c in steps:
        s = y @ y.T
        y = a * y + b * s @ y + c * s @ s @ y
    return y.T if u.shape[0] > u.shape[1] else y


def muon(
    x: Tensor,
    grads: list[Tensor],
    *,
    lr: float,
    weight_decay: float,
    scale: float,
    mu: float,
    ema: bool,
    nesterov: bool,
    steps: list[tuple[float, float, float]],
    margin: float,
    eps: float,
) -> Tensor:
    m = torch.zeros_like(x)
    for g in grads:
        part = (1 - mu) * g if ema else g
        m = mu * m + part
        u = part + mu * m if nesterov else m
        x = (1 - lr * weight_decay) * x - lr * scale * polar_polynomial(u, steps, margin, eps)
    return x

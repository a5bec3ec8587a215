"""Dense single-worker update rules in float64, written straight from the cards: the judges of the sharded ones.

Each takes a matrix X (m x n, fan_out x fan_in), a list of gradients, and returns the final X; the low-rank ones also
say what happened on the way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor


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


RIGHT = {"qr_pos": householder_positive, "qr_raw": householder_raw, "colnorm": unit_columns}


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
    right_factor: str,
) -> Trace:
    """Card 1 on M^T: U is n x r, V is m x r."""
    r = torch.zeros_like(x)
    trace = Trace(x)
    for g in grads:
        m = g + r
        u = torch.linalg.qr(m.T @ v)[0]
        w = m @ u
        v = RIGHT[right_factor](w)
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

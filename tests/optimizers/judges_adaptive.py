"""Dense judges of the adaptive-rank rules, one matrix and one plain Python number at a time (card 2, authors' code).

Matrices have exactly r_t columns here: no padding, no masks, no stacks. Gradients come as ``grads[step][replica]``,
since replicas that exchange factors keep a buffer each; pass one replica with the mean gradient otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from simdist.program.random import normal
from tests.optimizers.judges import householder_positive, unit_columns

RIGHT = {"qr_pos": householder_positive, "colnorm": unit_columns}


def entropy_rank(lengths: list[float]) -> float:
    s = [length + 1e-12 for length in lengths]
    p = [x / sum(s) for x in s]
    return math.exp(-sum(x * math.log(x) for x in p if x > 0))


@dataclass
class Controller:
    """V1's, V2's and V3's controllers, written from the three sources; ``rank`` is r_t."""

    rank: int
    cap: int
    gamma: float
    decay: float = 0.9
    up: bool = False  # V3: round up
    start_from_rank: bool = False  # V3
    least: int = 16
    multiple: int = 8
    rise: int | None = 16
    fall: int | None = 8
    quality: bool = False  # V1
    target: float = 0.08
    erank: float | None = None
    error: float | None = None

    def quantized(self, x: float) -> int:
        ratio = x / self.multiple
        return max(self.multiple, self.multiple * (math.ceil(ratio - 1e-9) if self.up else round(ratio)))

    def cut(self, x: int) -> int:
        return min(max(min(self.least, self.cap), x), self.cap)

    def see(self, lengths: list[float], error: float) -> int:
        now, r = entropy_rank(lengths), self.rank
        before = self.erank if self.erank is not None else (float(r) if self.start_from_rank else now)
        self.erank = self.decay * before + (1 - self.decay) * now
        want = self.gamma * self.erank
        want = math.ceil(want - 1e-9 * want) if self.up else round(want)
        if self.quality:
            assert self.rise is not None
            assert self.fall is not None
            self.error = error if self.error is None else 0.95 * self.error + 0.05 * error
            if error > max(self.target, self.error * 1.15):
                want = max(want, r + self.rise)
            if error < min(self.target / 2, self.error * 0.85):
                want = min(want, r - self.fall)
        want = self.cut(self.quantized(self.cut(want)))
        if want > r and self.rise is not None:
            want = min(want, r + self.rise)
        if want < r and self.fall is not None:
            want = max(want, r - self.fall)
        self.rank = self.cut(want)
        return self.rank


@dataclass
class Feedback:
    """``keep M - clear captured``, or V3's per-mode feedback with its cap on the buffer."""

    keep: float = 1.0
    clear: float = 1.0
    modes: bool = False
    base: float = 0.1
    decay: float = 0.95
    sharpness: float = 10.0
    most: float = 5.0
    align: bool = False


@dataclass
class History:
    x: Tensor
    ranks: list[int] = field(default_factory=list)  # r_t of each step
    eranks: list[float] = field(default_factory=list)  # its running mean after each step
    betas: list[Tensor] = field(default_factory=list)
    basis: Tensor | None = None


def adaptive(
    x: Tensor,
    grads: list[list[Tensor]],
    v: Tensor,
    name: str,
    control: Controller,
    feedback: Feedback,
    *,
    lr: float,
    weight_decay: float = 0.0,
    right_factor: str = "colnorm",
    scale: str = "none",
    growth: str = "normalized",
    sort_before_drop: bool = False,
    seed: int = 0,
) -> History:
    """Card 2 on M^T: U is n x r, V is m x r. ``scale`` is ``none`` or a factor that may depend on the rank."""
    m, n = x.shape
    buffers = [torch.zeros_like(x) for _ in grads[0]]
    history = History(x)
    modes = Modes(feedback)
    for step, gs in enumerate(grads):
        r = control.rank
        assert v.shape == (m, r)
        ms = [g + b for g, b in zip(gs, buffers, strict=True)]
        joint = torch.stack(ms).mean(dim=0)
        u = torch.linalg.qr(joint.T @ v)[0]
        w = joint @ u
        vbar = RIGHT[right_factor](w)
        factor = {
            "none": 1.0,
            "spectral": math.sqrt(m / n),
            "dmin_dmax": math.sqrt(min(m, n) / max(m, n)),
            "rank_comp": math.sqrt(min(m, n) / r),
        }[scale]
        x = (1 - lr * weight_decay) * x - lr * factor * vbar @ u.T
        if feedback.modes:
            beta = modes.beta(u, torch.stack(gs).mean(dim=0))
            history.betas.append(beta)
            buffers = [mk - (w * beta) @ u.T for mk in ms]
            size = math.sqrt(sum(float(b.square().sum()) for b in buffers) / len(gs))
            grad = math.sqrt(sum(float(g.square().sum()) for g in gs) / len(gs))
            if grad > 1e-8 and size > feedback.most * grad:
                buffers = [b * feedback.most * grad / size for b in buffers]
        else:
            buffers = [feedback.keep * mk - feedback.clear * w @ u.T for mk in ms]
        lengths = w.norm(dim=0)
        missed = math.sqrt(sum(float((mk - w @ u.T).square().sum()) for mk in ms))
        error = missed / (math.sqrt(sum(float(mk.square().sum()) for mk in ms)) + 1e-12)
        history.ranks.append(r)
        after = control.see(lengths.tolist(), error)
        assert control.erank is not None
        history.eranks.append(control.erank)
        v, order = vbar, list(range(r))
        if after < r:
            if sort_before_drop:
                order = sorted(range(r), key=lambda j: -float(lengths[j]))
            v = v[:, order][:, :after]
        elif after > r:
            extra = normal((m, after - r), seed, f"V/{name}", step=step + 1)
            extra = extra / extra.norm(dim=0) if growth == "normalized" else torch.linalg.qr(extra)[0]
            v = torch.cat([v, extra], dim=1)
        modes.resize(after, order)
    history.x, history.basis = x, v
    return history


class Modes:
    """V3: how persistent the gradient is along each column of U."""

    def __init__(self, feedback: Feedback) -> None:
        self.f = feedback
        self.rho: Tensor | None = None
        self.previous: Tensor | None = None  # columns: G u_i of the last step
        self.left: Tensor | None = None
        self.steps = 0

    def beta(self, u: Tensor, g: Tensor) -> Tensor:
        f, r, q = self.f, u.shape[1], g @ u
        rho = torch.zeros(r, dtype=u.dtype) if self.rho is None else self.rho
        if self.previous is not None:
            previous = self.previous
            if f.align:
                assert self.left is not None
                overlap = self.left.T @ u
                match = {}
                free, todo = set(range(overlap.shape[0])), set(range(r))
                while todo and free:
                    old, new = max(((i, j) for i in free for j in todo), key=lambda ij: abs(float(overlap[ij])))
                    match[new] = (old, 1.0 if overlap[old, new] >= 0 else -1.0)
                    free.remove(old)
                    todo.remove(new)
                previous = torch.stack([previous[:, match[j][0]] * match[j][1] for j in range(r)], dim=1)
                rho = torch.stack([rho[match[j][0]] for j in range(r)])
            cosine = torch.nn.functional.cosine_similarity(q, previous, dim=0)
            rho = f.decay * rho + (1 - f.decay) * cosine
        self.rho, self.previous, self.left, self.steps = rho, q, u, self.steps + 1
        if self.steps == 1:
            return torch.full((r,), f.base, dtype=u.dtype)
        b = torch.sigmoid(f.sharpness * rho)
        return (b * f.base / b.mean().clamp(min=0.01)).clamp(0.05, 0.95)

    def resize(self, after: int, order: list[int]) -> None:
        if self.rho is None or after == len(order):
            return
        self.previous = None  # V3 starts comparing afresh when the rank changes
        if after < len(order):
            self.rho = self.rho[order][:after]
        else:
            self.rho = torch.cat([self.rho, self.rho.new_zeros(after - len(order))])

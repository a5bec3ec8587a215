"""Dense judges of gradient compression: all members' gradients in one list, written from cards 8, 9, 11 and 12.

A judge is about one tensor and one group of members. ``step`` takes their gradients ``[rows, ...]`` (over shards: of
the whole padded tensor) and returns what each member gets: all the same, or over shards its own slice of the rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import scipy.fft
import torch
from torch import Tensor

from simdist.program.random import normal, stream

C = Callable[[Tensor, int], Tensor]
"""``c(vector, step)``: what arrives of a vector."""


# -- codecs, in float64 -----------------------------------------------------------------------------------------------


def topk(k: int) -> C:
    def c(x: Tensor, step: int) -> Tensor:
        kept = torch.zeros_like(x)
        places = x.abs().topk(min(k, len(x))).indices
        kept[places] = x[places]
        return kept

    return c


def sign(x: Tensor, step: int) -> Tensor:
    # the scale travels in fp32
    scale = x.abs().mean().float().double()
    return torch.where(x < 0, -scale, scale)


def int8_nearest(x: Tensor, step: int) -> Tensor:
    exact = x.abs().max() / 127
    scale = exact.float()
    if scale.double() * 127 < x.abs().max():
        scale = scale.nextafter(torch.tensor(math.inf))
    return (x / scale.double()).round() * scale.double() if scale > 0 else x * 0


def randk(k: int, axis: str, name: str, seed: int) -> C:
    def c(x: Tensor, step: int) -> Tensor:
        draws = torch.rand(len(x), generator=stream(seed, f"compression/{axis}/{name}", None, step))
        places = draws.topk(min(k, len(x))).indices
        kept = torch.zeros_like(x)
        kept[places] = x[places]
        return kept

    return c


# -- methods ----------------------------------------------------------------------------------------------------------


@dataclass
class Group:
    """What every judge knows: the members, the shape of what each hands in, and how many of its rows are real."""

    axis: str
    name: str
    members: int
    shape: tuple[int, ...]
    real_rows: int
    seed: int

    @property
    def length(self) -> int:
        return math.prod(self.shape)

    @property
    def scatter(self) -> bool:
        return self.axis == "shards"

    @property
    def real(self) -> Tensor:
        rows = torch.arange(self.shape[0]) < self.real_rows
        return rows.repeat_interleave(self.length // self.shape[0])

    def slices(self, x: Tensor) -> list[Tensor]:
        """Cut a flat vector for the members, the last one filled up with zeros."""
        each = -(-len(x) // self.members)
        filled = torch.cat([x, x.new_zeros(each * self.members - len(x))])
        return list(filled.split(each))

    def joined(self, slices: list[Tensor]) -> Tensor:
        return torch.cat(slices)[: self.length]

    def handed_out(self, mean: Tensor) -> list[Tensor]:
        whole = torch.where(self.real, mean, 0).reshape(self.shape)
        return list(whole.chunk(self.members)) if self.scatter else [whole] * self.members


@dataclass
class ErrorFeedback:
    """EF: p = u + decay e, u = momentum u + G; c = C(p); e = p - c."""

    group: Group
    c: C
    reduction: str
    decay: float = 1.0
    momentum: float = 0.0
    way_back: str = "compressed"
    errors: dict[int, Tensor] = field(default_factory=dict)
    momenta: dict[int, Tensor] = field(default_factory=dict)
    owners: dict[int, Tensor] = field(default_factory=dict)

    def step(self, gradients: list[Tensor], step: int, lr: float) -> list[Tensor]:
        g, n = self.group, self.group.members
        zero = torch.zeros(g.length, dtype=torch.float64)
        sent = []
        for i, gradient in enumerate(gradients):
            u = self.momentum * self.momenta.get(i, zero) + gradient.flatten()
            self.momenta[i] = u
            p = u + self.decay * self.errors.get(i, zero)
            if g.scatter or self.reduction == "two_shot":
                c = g.joined([self.c(part, step) for part in g.slices(p)])
            else:
                c = self.c(p, step)
            c = torch.where(g.real, c, 0)
            self.errors[i] = p - c
            sent.append(c)
        mean = torch.stack(sent).sum(0) / n
        if not g.scatter and self.reduction == "two_shot" and self.way_back == "compressed":
            real, back = g.slices(g.real), []
            for j, part in enumerate(g.slices(mean)):
                total = part + self.owners.get(j, 0)
                returned = self.c(total, step)
                self.owners[j] = torch.where(real[j], total - returned, 0)
                back.append(returned)
            mean = g.joined(back)
        return g.handed_out(mean)


@dataclass
class EF21:
    """EF21: c = C(v - g); g += c; what stands for the gradient is the mean of all g."""

    group: Group
    c: C
    reduction: str
    eta: float = 1.0
    start: str = "zero"
    own: dict[int, Tensor] = field(default_factory=dict)
    momenta: dict[int, Tensor] = field(default_factory=dict)

    def step(self, gradients: list[Tensor], step: int, lr: float) -> list[Tensor]:
        g = self.group
        for i, gradient in enumerate(gradients):
            flat = gradient.flatten()
            v = flat if i not in self.momenta else (1 - self.eta) * self.momenta[i] + self.eta * flat
            self.momenta[i] = v
            if i not in self.own and self.start == "dense":
                self.own[i] = v
                continue
            own = self.own.get(i, torch.zeros_like(v))
            if g.scatter or self.reduction == "two_shot":
                c = g.joined([self.c(part, step) for part in g.slices(v - own)])
            else:
                c = self.c(v - own, step)
            self.own[i] = own + torch.where(g.real, c, 0)
        return g.handed_out(torch.stack(list(self.own.values())).mean(0))


@dataclass
class PowerSGD:
    """PowerSGD by projectors: the columns' span is all that counts."""

    group: Group
    rank: int
    start: int = 0
    alternate: bool = False
    error_feedback: bool = True
    warm_start: bool = True
    errors: dict[int, Tensor] = field(default_factory=dict)
    factors: dict[str, Tensor] = field(default_factory=dict)

    def step(self, gradients: list[Tensor], step: int, lr: float) -> list[Tensor]:
        g = self.group
        if step <= self.start:
            return g.handed_out(torch.stack(gradients).mean(0).flatten())
        compressed = step - self.start
        n = g.length // g.shape[0]
        drawn = {"seed": g.seed, "purpose": f"powersgd/{g.name}"}
        q = self.factors.get("q")
        if not self.warm_start:
            q = normal((n, self.rank), **drawn, step=compressed)
        elif q is None:
            q = normal((n, self.rank), **drawn)
        targets = [x.reshape(-1, n) + self.errors.get(i, 0) for i, x in enumerate(gradients)]
        mean = torch.stack(targets).mean(0)
        if not self.alternate:
            basis = orthonormal(mean @ q)
            whole = basis @ basis.mT @ mean
            self.factors["q"] = mean.mT @ basis
        elif compressed % 2:
            basis = orthonormal(q)
            whole = mean @ basis @ basis.mT
            self.factors["p"] = mean @ basis
        else:
            basis = orthonormal(self.factors["p"])
            whole = basis @ basis.mT @ mean
            self.factors["q"] = mean.mT @ basis
        if self.error_feedback:
            self.errors = {i: target - whole for i, target in enumerate(targets)}
        return g.handed_out(whole.flatten())


def orthonormal(x: Tensor) -> Tensor:
    return torch.linalg.svd(x, full_matrices=False).U


@dataclass
class DeMo:
    """DeMo: the k largest cosine coefficients of every chunk of each member's momentum."""

    group: Group
    k: int
    chunk: int
    decay: float = 0.999
    weight: str = "lr"
    merge: str = "senders"
    deltas: dict[int, Tensor] = field(default_factory=dict)

    def step(self, gradients: list[Tensor], step: int, lr: float) -> list[Tensor]:
        g = self.group
        matrix = (g.shape[0], g.length // g.shape[0]) if len(g.shape) > 1 else (1, g.shape[0])
        a, b = (max(d for d in range(1, self.chunk + 1) if side % d == 0) for side in matrix)
        for i, x in enumerate(gradients):
            old = self.deltas.get(i, torch.zeros(matrix, dtype=torch.float64))
            self.deltas[i] = self.decay * old + (lr if self.weight == "lr" else 1.0) * x.reshape(matrix)
        merged = torch.zeros(matrix, dtype=torch.float64)
        sent = {i: torch.zeros(matrix, dtype=torch.float64) for i in self.deltas}
        for top in range(0, matrix[0], a):
            for left in range(0, matrix[1], b):
                place = (slice(top, top + a), slice(left, left + b))
                coefficients = []
                for i, delta in self.deltas.items():
                    whole = torch.from_numpy(scipy.fft.dctn(delta[place].numpy(), norm="ortho")).flatten()
                    coefficients.append(topk(self.k)(whole, step))
                    sent[i][place] = inverse(coefficients[-1], a, b)
                total, count = sum(coefficients), sum((c != 0).double() for c in coefficients)
                divisor = torch.as_tensor(count).clamp(min=1) if self.merge == "senders" else g.members
                merged[place] = inverse(torch.as_tensor(total) / divisor, a, b)
        real = g.real.reshape(matrix)
        self.deltas = {i: torch.where(real, delta - sent[i], 0) for i, delta in self.deltas.items()}
        return g.handed_out(merged.flatten())


def inverse(coefficients: Tensor, a: int, b: int) -> Tensor:
    return torch.from_numpy(scipy.fft.idctn(coefficients.reshape(a, b).numpy(), norm="ortho"))


@dataclass
class MajorityVote:
    """Signum with majority vote; ties, and zeros, are +1."""

    group: Group
    beta: float = 0.9
    momenta: dict[int, Tensor] = field(default_factory=dict)

    def step(self, gradients: list[Tensor], step: int, lr: float) -> list[Tensor]:
        votes = torch.zeros(self.group.length, dtype=torch.float64)
        for i, x in enumerate(gradients):
            self.momenta[i] = self.beta * self.momenta.get(i, 0) + (1 - self.beta) * x.flatten()
            votes += torch.where(self.momenta[i] < 0, -1.0, 1.0)
        return self.group.handed_out(torch.where(votes < 0, -1.0, 1.0).double())


@dataclass
class Mean:
    """No compression."""

    group: Group

    def step(self, gradients: list[Tensor], step: int, lr: float) -> list[Tensor]:
        return self.group.handed_out(torch.stack(gradients).mean(0).flatten())


Judge = Any


def run_dense(
    gradients: Callable[[str, int, int], Tensor],
    shapes: dict[str, tuple[int, ...]],
    replicas: int,
    shards: int,
    steps: int,
    make: Callable[[Group], Judge],
    lr: Callable[[int], float],
    seed: int,
) -> list[list[dict[str, Tensor]]]:
    """Return what every worker gets in every step: shards first, then replicas, group by group."""
    judges: dict[tuple[str, str, int], Judge] = {}
    found: list[list[dict[str, Tensor]]] = [[{} for _ in range(replicas * shards)] for _ in range(steps)]
    for name, shape in shapes.items():
        rows = -(-shape[0] // shards)
        whole = (rows * shards, *shape[1:])
        for r in range(replicas):
            group = Group("shards", name, shards, whole, shape[0], seed)
            judges["shards", name, r] = make(group) if shards > 1 else Mean(group)
        for f in range(shards):
            real = min(rows, max(0, shape[0] - f * rows))
            group = Group("replicas", name, replicas, (rows, *shape[1:]), real, seed)
            judges["replicas", name, f] = make(group) if replicas > 1 else Mean(group)
        for step in range(1, steps + 1):
            filled = torch.zeros(replicas * shards, *whole, dtype=torch.float64)
            for w in range(replicas * shards):
                filled[w, : shape[0]] = gradients(name, step, w)
            scattered = [
                judges["shards", name, r].step(list(filled[r * shards : (r + 1) * shards]), step, lr(step))
                for r in range(replicas)
            ]
            for f in range(shards):
                means = judges["replicas", name, f].step([scattered[r][f] for r in range(replicas)], step, lr(step))
                for r in range(replicas):
                    found[step - 1][r * shards + f][name] = means[r]
    return found

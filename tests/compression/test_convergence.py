"""What memories are for: with them compressed descent converges where it stalls, or walks away, without."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from simdist.compression import EF21, Compression, ErrorFeedback
from simdist.execution.engine import LocalEngine
from simdist.optimizers import SGD
from simdist.parallelism import Layout, Reduction
from simdist.program import MeshShape, Worker
from simdist.program.program import LockstepProgram
from simdist.workloads.workload import ParamSpec, Unit
from tests.compression.harness import WIRING, chosen

Slope = Callable[[Tensor, int, int], Tensor]
"""``slope(x, step, worker)``: a worker's gradient."""


class Descent(LockstepProgram):
    """Plain gradient descent on one vector with compressed gradients."""

    def __init__(self, method: Compression | None, mesh: MeshShape, slope: Slope, x: Tensor, lr: float) -> None:
        unit = Unit("u", (ParamSpec("x", tuple(x.shape), "vector"),), 0.0, 0.0, root=True)
        self.layout = Layout((unit,), SGD(lr=lr), mesh)
        self.reduction = Reduction(self.layout, chosen(method, mesh))
        self.slope, self.x, self.lr = slope, x, lr

    async def start(self, worker: Worker) -> Any:
        return self.x, self.reduction.init(worker, {"x": self.x})

    async def step(self, worker: Worker, state: Any, step: int) -> tuple[Any, Mapping[str, Any]]:
        x, memories = state
        (buffer,) = self.layout.units[0].buffers
        assert worker.index is not None
        packed = self.layout.pack(buffer, {"x": self.slope(x, step, worker.index)})
        means, memories = await self.reduction.reduce(buffer, packed, memories, worker, step)
        return (x - self.lr * means["x"], memories), {}

    async def parameters(self, worker: Worker, state: Any) -> dict[str, Tensor]:
        return {"x": state[0]}


def descend(
    method: Compression | None, slope: Slope, x: Tensor, lr: float, steps: int, members: int = 2
) -> list[Tensor]:
    """Return the parameters after every step."""
    mesh, found = MeshShape(members, 1), []
    with LocalEngine.inline(Descent(method, mesh, slope, x, lr), mesh, WIRING, 0) as engine:
        for _ in engine.steps(1, steps):
            found.append(engine.parameters()["x"])
    return found


# -- EF21 against top-k that forgets -----------------------------------------------------------------------------------

CENTRES = torch.tensor([[4.0, 1.0, -2.0, 0.5], [-4.0, 1.5, 2.0, 0.1], [0.5, -1.0, 0.2, 3.0]], dtype=torch.float64)
CURVES = torch.tensor([[1.0, 0.5, 0.3, 0.2], [0.8, 0.4, 0.5, 0.3], [0.9, 0.6, 0.4, 0.4]], dtype=torch.float64)
#: where the sum of the three quadratics is least
OPTIMUM = (CENTRES * CURVES).sum(0) / CURVES.sum(0)


def quadratics(x: Tensor, step: int, worker: int) -> Tensor:
    """Workers pull to centres of their own, so that at the optimum their gradients are not zero."""
    return CURVES[worker] * (x - CENTRES[worker])


@cache
def distances(method: Compression) -> list[float]:
    path = descend(method, quadratics, torch.zeros(4, dtype=torch.float64), 0.2, 300, members=3)
    return [float((x - OPTIMUM).norm()) for x in path]


def test_ef21_converges_linearly_where_naive_topk_stalls() -> None:
    topk = "topk(k=1, values=fp64)"
    ef21, naive = distances(EF21(codec=topk)), distances(ErrorFeedback(codec=topk, decay=0.0))
    assert min(naive[-100:]) > 0.1
    # linearly: every 100 steps by a constant factor, down to 1e-8
    assert ef21[199] < ef21[99] / 100
    assert ef21[299] < ef21[199] / 100
    assert ef21[299] < 1e-5


def test_error_feedback_gets_near_and_ef21_nearer() -> None:
    """With a constant step EF stays at a distance of its order, as workers' gradients differ at the optimum."""
    topk = "topk(k=1, values=fp64)"
    feedback = distances(ErrorFeedback(codec=topk))
    assert min(feedback[-100:]) < 0.5 * min(distances(ErrorFeedback(codec=topk, decay=0.0))[-100:])
    assert distances(EF21(codec=topk))[-1] < min(feedback[-100:])


# -- signs: counter-example of Karimireddy et al. (1901.09847, section 3), least squares -------------------------------

EPSILON = 0.5
DIRECTIONS = [
    torch.tensor([1.0, -1.0], dtype=torch.float64) + EPSILON * torch.tensor([1.0, 1.0], dtype=torch.float64),
    -torch.tensor([1.0, -1.0], dtype=torch.float64) + EPSILON * torch.tensor([1.0, 1.0], dtype=torch.float64),
]


START = torch.tensor([1.0, 1.0, 1.5, 0.5], dtype=torch.float64)


def least_squares(x: Tensor, step: int, worker: int) -> Tensor:
    """Two such problems in pairs of numbers, as each of two owners has a slice, and a scale, of its own.

    Gradients of ``<a, x>^2`` for one of two a's in turn: their signs are always along (1, -1), whatever x is.
    """
    a = DIRECTIONS[step % 2]
    pairs = x.reshape(2, 2)
    return (2 * (pairs @ a).unsqueeze(-1) * a).flatten()


def test_signs_converge_with_error_feedback_only() -> None:
    """Without it they never leave the line on which x1 + x2 is what it was; with it they reach the optimum at zero."""
    without, with_feedback = (
        descend(ErrorFeedback(codec="sign", decay=decay, way_back="exact"), least_squares, START, 0.05, 300)
        for decay in (0.0, 1.0)
    )
    assert all(abs(float(pair) - 2) < 1e-5 for x in without for pair in x.reshape(2, 2).sum(-1))
    assert float(with_feedback[-1].norm()) < 1e-3


def test_without_compression_all_of_these_converge() -> None:
    x = descend(None, quadratics, torch.zeros(4, dtype=torch.float64), 0.2, 200, members=3)[-1]
    torch.testing.assert_close(x, OPTIMUM, rtol=0, atol=1e-4)
    assert float(descend(None, least_squares, START, 0.05, 300)[-1].norm()) < 1e-3


def test_ef21_needs_its_momentum_on_noise() -> None:
    """With eta 1 the estimates chase the noise; with momentum they follow its mean."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(400, 3, 4, generator=generator, dtype=torch.float64)

    def noisy(x: Tensor, step: int, worker: int) -> Tensor:
        return quadratics(x, step, worker) + 3 * noise[step - 1, worker]

    def late(eta: float) -> float:
        method = EF21(codec="topk(k=1, values=fp64)", eta=eta)
        path = descend(method, noisy, torch.zeros(4, dtype=torch.float64), 0.05, 400, members=3)
        return float(torch.stack(path[-200:]).sub(OPTIMUM).square().mean())

    assert late(0.1) < 0.7 * late(1.0)

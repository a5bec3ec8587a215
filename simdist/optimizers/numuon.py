"""NuMuon (Dolatabadi et al., arXiv 2603.03597; card 7): steps along the leading singular pairs of the momentum.

``M <- mu M + (1-mu) G``; ``D = U_k V_k^T``, the sum of M's k leading pairs; ``X <- (1 - lr wd) X - lr scale D``. D is
the linear-minimisation answer over ``{||D||_op <= 1, ||D||_* <= k}``, k = ``ceil(rho(t) min(m, n))``. With k the
shorter side it is Muon by exact polar factors, and with k = r the ideal that Orth-Dion follows (card 1).

Traffic is that of Muon's forms (:mod:`simdist.optimizers.whole_matrices`); the warm basis of Krylov stays with the
owner and never travels.

Not confirmed for us: update scale, where weight decay enters, the values of rho(t), block size, iterations and warm
start of Krylov; all are options here. Nesterov momentum is not in the paper's formula. A public "NuMuon" that
soft-thresholds the weights after a Muon step is a different method.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from pydantic import model_validator
from torch import Tensor

from simdist.linalg.leading_pairs import krylov_flops, krylov_leading_pairs, leading_pairs, leading_pairs_flops
from simdist.linalg.orthonormalize import nonzero
from simdist.optimizers.rank_schedule import RankSchedule, pairs_of
from simdist.optimizers.rule import Decay, MeshShape, Stack, optimizers
from simdist.optimizers.spectral import Scale, Spectral, update_scale
from simdist.optimizers.whole_matrices import Form, check_form, collect, dealt, hand_back, stack_multiple
from simdist.program import Worker
from simdist.program.random import normal
from simdist.settings import NaturalInt, Settings


class KrylovSettings(Settings):
    """Randomised block Krylov in place of the SVD: see :func:`simdist.linalg.leading_pairs.krylov_leading_pairs`.

    Attributes:
        iterations: blocks after the first.
        oversampling: columns of a block beyond k (cut to the shorter side of the matrix).
        warm_start: start from the last step's right singular vectors instead of a new Gaussian block.
    """

    iterations: NaturalInt = 2
    oversampling: NaturalInt = 8
    warm_start: bool = False


class NuMuonState(NamedTuple):
    """State of NuMuon.

    ``momentum``: this worker's rows [c, rows, n]; ``step``: how many steps were taken (a scalar tensor); ``basis``:
    with a warm start, where Krylov starts for the matrices that this worker works on [mine, max(m, n), s], else no
    columns.
    """

    momentum: Tensor
    step: Tensor
    basis: Tensor


@optimizers.register("numuon")
class NuMuon(Spectral):
    """Steps along the k leading singular pairs of the momentum, on hidden matrices (arXiv 2603.03597).

    Attributes:
        mu: how much of the momentum is kept in each step.
        nesterov: orthogonalise ``(1-mu) G + mu M`` instead of M.
        rank_schedule: fraction of the shorter side that is kept, over the steps of the run.
        krylov: settings of randomised block Krylov; None takes the exact SVD.
        scale: factor on the learning rate (card 0); ``rank_comp`` takes the k of the step.
        form: who works on what (see :mod:`simdist.optimizers.whole_matrices`).
    """

    name: str = "numuon"
    mu: Decay = 0.95
    nesterov: bool = False
    rank_schedule: RankSchedule = RankSchedule(start=0.25)
    krylov: KrylovSettings | None = None
    scale: Scale = "spectral"
    form: Form = "owner"

    @model_validator(mode="after")
    def _warm_start_cannot_grow(self) -> NuMuon:
        if self.krylov is not None and self.krylov.warm_start and self.rank_schedule.rises:
            raise ValueError(
                f"got krylov.warm_start with a rank that rises ({self.rank_schedule}); expected one that stays or "
                "falls, since a warm block has no directions to grow by; write warm_start=false"
            )
        return self

    def multiple(self, mesh: MeshShape) -> int:
        return stack_multiple(self.form, mesh)

    def check(self, shape: tuple[int, ...], name: str, mesh: MeshShape) -> None:
        check_form(self.form, mesh)

    def init(self, stack: Stack, x: Tensor, worker: Worker) -> NuMuonState:
        warm = self.krylov is not None and self.krylov.warm_start
        basis = self._gaussian(stack, x, worker, step=0) if warm else dealt(self.form, x[..., :0], worker)
        return NuMuonState(torch.zeros_like(x), torch.zeros((), dtype=torch.int64), basis)

    async def update(
        self, stack: Stack, x: Tensor, grad: Tensor, state: Any, lr: float, worker: Worker
    ) -> tuple[Tensor, NuMuonState]:
        m, n = stack.shape
        new = (1 - self.mu) * grad
        momentum = self.mu * state.momentum + new
        direction = new + self.mu * momentum if self.nesterov else momentum
        k = pairs_of(self.rank_schedule.at(int(state.step)), m, n)

        whole = await collect(self.form, direction, worker, rows=m)
        pairs, basis = await self._leading_pairs(stack, whole, k, state, worker)
        update = await hand_back(self.form, pairs, worker, rows=stack.rows)
        step = lr * update_scale(self.scale, m, n, k)
        return self.decayed(stack, x, lr) - step * update, NuMuonState(momentum, state.step + 1, basis)

    async def _leading_pairs(
        self, stack: Stack, whole: Tensor, k: int, state: NuMuonState, worker: Worker
    ) -> tuple[Tensor, Tensor]:
        """Return the update of the matrices that this worker works on, and the basis of the next step."""
        m, n = stack.shape
        if self.krylov is None:
            await worker.compute(whole.shape[-3] * leading_pairs_flops(m, n, k), "svd")
            return leading_pairs(whole, k), state.basis
        width, iterations = self._width(k, stack), self.krylov.iterations
        await worker.compute(whole.shape[-3] * krylov_flops(m, n, k, width, iterations), "krylov")
        if not self.krylov.warm_start:
            start = self._gaussian(stack, whole, worker, int(state.step))
            return krylov_leading_pairs(whole, k, start, iterations).pairs, state.basis
        result = krylov_leading_pairs(whole, k, state.basis[..., :width], iterations)
        # a matrix without any gradient yet says nothing: its basis stays
        basis = torch.where(nonzero(whole), result.basis[..., :width], state.basis[..., :width])
        return result.pairs, basis

    def _width(self, k: int, stack: Stack) -> int:
        assert self.krylov is not None
        return min(k + self.krylov.oversampling, *stack.shape)

    def _gaussian(self, stack: Stack, like: Tensor, worker: Worker, step: int) -> Tensor:
        """Return where Krylov starts in this step, [..., mine, max(m, n), s]: the same on every mesh."""
        m, n = stack.shape
        width = self._width(pairs_of(self.rank_schedule.at(step), m, n), stack)
        whole = like.new_zeros((stack.count, max(m, n), width))
        for i, name in enumerate(stack.names):
            whole[i] = normal((max(m, n), width), worker.seed, f"krylov/{name}", step=step).to(whole)
        # as many leading worker axes as ``like`` has, each of size one: all workers draw the same
        return dealt(self.form, whole.reshape((1,) * (like.ndim - 3) + whole.shape), worker)

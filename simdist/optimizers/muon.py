"""Muon (Jordan et al. 2024): momentum, orthogonalised by Newton-Schulz on whole matrices (card 5).

The distributed forms and their bytes are those of :mod:`simdist.optimizers.whole_matrices`. :class:`MuonBase` holds
what Muon's relatives share: the momentum, the orthogonalisation, and the form.
"""

from __future__ import annotations

from abc import ABC
from typing import Any, Literal, NamedTuple

import torch
from pydantic import model_validator
from torch import Tensor

from simdist.errors import InputError
from simdist.linalg.leading_pairs import leading_pairs_flops, polar
from simdist.linalg.newton_schulz import CoefficientSet, newton_schulz, newton_schulz_flops
from simdist.optimizers.rule import Decay, MeshShape, Stack, optimizers
from simdist.optimizers.spectral import Scale, Spectral, update_scale
from simdist.optimizers.whole_matrices import Form, check_form, collect, dealt, hand_back, stack_multiple
from simdist.program import Worker
from simdist.settings import PositiveInt


class MuonState(NamedTuple):
    """``momentum``: running sum or mean of gradients, this worker's rows."""

    momentum: Tensor


class MuonBase(Spectral, ABC):
    """Base of Muon and its relatives: momentum, and its orthogonalisation in one of the distributed forms.

    Attributes:
        mu: how much of the momentum is kept in each step.
        convention: ``M <- mu M + G`` (``sum``: microsoft, Moonlight) or ``mu M + (1-mu) G`` (``ema``: Jordan).
        nesterov: take ``mu M`` plus the new gradient's term once more, instead of M.
        kernel: ``newton_schulz``, or ``svd``: the exact polar factor that Newton-Schulz approximates.
        coefficients: of Newton-Schulz, by source.
        ns_steps: Newton-Schulz steps.
        ns_dtype: precision of the iteration; ``bfloat16`` is that of the references.
        scale: factor on the learning rate (card 0).
        form: who orthogonalises what (see :mod:`simdist.optimizers.whole_matrices`).
    """

    mu: Decay = 0.95
    convention: Literal["sum", "ema"] = "ema"
    nesterov: bool = True
    kernel: Literal["newton_schulz", "svd"] = "newton_schulz"
    coefficients: CoefficientSet = "jordan"
    ns_steps: PositiveInt = 5
    ns_dtype: Literal["same", "bfloat16"] = "same"
    scale: Scale = "spectral_clipped"
    form: Form = "owner"

    @model_validator(mode="after")
    def _svd_has_no_iteration(self) -> MuonBase:
        if self.kernel == "svd":
            for key in ("coefficients", "ns_steps", "ns_dtype"):
                got, usual = getattr(self, key), type(self).model_fields[key].default
                if got != usual:
                    raise ValueError(
                        f"got {key}={got} beside kernel=svd, which does not iterate; expected no {key}, "
                        "or write kernel=newton_schulz"
                    )
        return self

    def multiple(self, mesh: MeshShape) -> int:
        return stack_multiple(self.form, mesh)

    def check(self, shape: tuple[int, ...], name: str, mesh: MeshShape) -> None:
        check_form(self.form, mesh)

    def accumulate(self, momentum: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Return the new momentum, and the direction to orthogonalise."""
        new = grad if self.convention == "sum" else (1 - self.mu) * grad
        momentum = self.mu * momentum + new
        return momentum, new + self.mu * momentum if self.nesterov else momentum

    async def whole_update(self, stack: Stack, direction: Tensor, worker: Worker) -> Tensor:
        """Return this worker's rows of the orthogonalised whole matrices."""
        # Without its padding rows, so that every mesh iterates the same matrix in the same orientation.
        whole = await collect(self.form, direction, worker, rows=stack.shape[0])
        return await hand_back(self.form, await self.orthogonalise(whole, worker), worker, rows=stack.rows)

    async def orthogonalise(self, x: Tensor, worker: Worker) -> Tensor:
        """Return the (approximate) polar factor of each matrix ``[..., k, m, n]``, and book the work on k of them."""
        count, m, n = x.shape[-3:]
        if self.kernel == "svd":
            await worker.compute(count * leading_pairs_flops(m, n, min(m, n)), "svd")
            return polar(x)
        await worker.compute(count * newton_schulz_flops(m, n, self.ns_steps), "newton_schulz")
        dtype = torch.bfloat16 if self.ns_dtype == "bfloat16" else None
        return newton_schulz(x, self.coefficients, self.ns_steps, dtype)


@optimizers.register("muon")
class Muon(MuonBase):
    """Momentum orthogonalised by Newton-Schulz, on hidden matrices; AdamW elsewhere (Jordan et al. 2024).

    ``X <- (1 - lr wd) X - lr scale NS(direction)``, see :class:`MuonBase`. The defaults are Jordan's.

    ``returns`` says what DDP's owners send to the others: their ``updates`` (microsoft/dion), or the new ``params``
    themselves (KellerJordan/Muon), which then travel and are rounded as the wire kind ``params``. The latter needs
    whole parameters on every worker, that is ``form="owner"`` on a mesh without shards.
    """

    name: str = "muon"
    returns: Literal["updates", "params"] = "updates"

    @model_validator(mode="after")
    def _params_come_from_owners(self) -> Muon:
        if self.returns == "params" and self.form != "owner":
            raise ValueError(f"got returns=params beside form={self.form}; expected form=owner, or returns=updates")
        return self

    def check(self, shape: tuple[int, ...], name: str, mesh: MeshShape) -> None:
        super().check(shape, name, mesh)
        if self.returns == "params" and mesh.shards > 1:
            raise InputError(
                f"got optimizer.returns params on {mesh.shards} shards; expected a mesh without shards (DDP), where "
                "an owner holds the whole parameter; write optimizer.returns: updates"
            )

    def init(self, stack: Stack, x: Tensor, worker: Worker) -> MuonState:
        return MuonState(torch.zeros_like(x))

    async def update(
        self, stack: Stack, x: Tensor, grad: Tensor, state: Any, lr: float, worker: Worker
    ) -> tuple[Tensor, MuonState]:
        momentum, direction = self.accumulate(state.momentum, grad)
        m, n = stack.shape
        step = lr * update_scale(self.scale, m, n, min(m, n))
        if self.returns == "params":
            mine = await collect(self.form, direction, worker, rows=m)
            owned = dealt(self.form, x, worker)
            new = self.decayed(stack, owned, lr) - step * await self.orthogonalise(mine, worker)
            new = await hand_back(self.form, new, worker, rows=stack.rows, part="params", wire="params")
        else:
            new = self.decayed(stack, x, lr) - step * await self.whole_update(stack, direction, worker)
        return new, MuonState(momentum)

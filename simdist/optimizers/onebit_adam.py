"""1-bit Adam (Tang et al., arXiv 2102.02888; card 12): Adam whose momentum travels as signs once v is frozen.

Replicas are brought together by the rule itself (no gradient is averaged before it), shard by shard on their rows:

- ``warmup_steps`` steps of AdamW with the gradient averaged over replicas, ``2 ring(R) d b`` bytes sent per worker for
  a parameter of d numbers here, b the bytes of ``wire.grads``;
- then v is what it was, and replica j sends its momentum and takes what arrives for its momentum:
  ``m_j = b1 m + (1-b1) g_j``; ``c_j = C(m_j + e_j)``; ``e_j = m_j + e_j - c_j``; the owner of a slice encodes
  ``C(mean c_j + E)`` with an error memory E of its own, which is the next m of everybody. Slices are messages of their
  own: ``2 (R-1) s`` bytes, s those of an encoded slice of ``ceil(d / R)`` numbers; for signs ``ceil(. / 8) + 4``.

Where v is zero when it freezes (numbers that never had a gradient, such as rows of an embedding for bytes that did not
occur), a step would be a sign's whole scale over eps. These numbers stand still from there on, and nothing is sent or
remembered for them but the zeros of a message of fixed length, as DeepSpeed's momentum mask does.

Not confirmed for us: the share of a run that the warm-up takes (about 15 to 20 percent), and the bias corrections after
it; here v is frozen with its own and m keeps its own, so that nothing jumps at the switch (the formula has none, and
both are near 1 by then). With one replica nothing travels, but its momentum is still encoded, as the formulas say.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from simdist.codecs.setting import CodecName, known_codec
from simdist.exchange import over_replicas, two_shot
from simdist.optimizers.adamw import AdamW, AdamWState
from simdist.optimizers.rule import Decay, MeshShape, Rule, Stack, optimizers
from simdist.program import Worker, together
from simdist.program.audit import audit
from simdist.settings import PositiveFloat, PositiveInt


class OneBitAdamState(NamedTuple):
    """What AdamW remembers, and what codecs left out.

    Attributes:
        mean: m, the same on all replicas; like the parameter.
        square: v, the same on all replicas.
        step: steps that were taken (a scalar tensor).
        error: e_j of this worker, like the parameter.
        sum_error: E of this worker's slice of every parameter, ``[..., count, slice]``.
    """

    mean: Tensor
    square: Tensor
    step: Tensor
    error: Tensor
    sum_error: Tensor


@optimizers.register("onebit_adam")
class OneBitAdam(Rule):
    """1-bit Adam: AdamW for a warm-up, then v is frozen and momentum travels as signs, both ways (arXiv 2102.02888).

    ``x <- (1 - lr wd) x - lr (m / (1-b1^t)) / (sqrt(v / (1-b2^T)) + eps)``, T the warm-up; m and what is not confirmed:
    see :mod:`simdist.optimizers.onebit_adam`. Takes parameters of every role.

    Attributes:
        warmup_steps: steps of plain AdamW before v is frozen; as many as the run has, and it is AdamW.
        codec: C; the paper's is ``sign``, a bit a number and one scale a message. It should be a contraction.
    """

    name: str = "onebit_adam"
    warmup_steps: PositiveInt
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    codec: CodecName = "sign"

    def syncs_replicas(self, shape: tuple[int, ...], mesh: MeshShape) -> bool:
        return mesh.replicas > 1

    def init(self, stack: Stack, x: Tensor, worker: Worker) -> OneBitAdamState:
        mean, square, step = self._adamw().init(stack, x, worker)
        flat = x.flatten(-len(stack.shape))
        size = -(-flat.shape[-1] // stack.mesh.replicas)
        return OneBitAdamState(mean, square, step, torch.zeros_like(x), flat.new_zeros(*flat.shape[:-1], size))

    def _adamw(self) -> AdamW:
        return AdamW(lr=self.lr, weight_decay=self.weight_decay, betas=self.betas, eps=self.eps)

    async def update(
        self, stack: Stack, x: Tensor, grad: Tensor, state: Any, lr: float, worker: Worker
    ) -> tuple[Tensor, OneBitAdamState]:
        if int(state.step) < self.warmup_steps:
            grad = await worker.mesh.replicas.mean(grad, part="gradient", wire="grads")
            before = AdamWState(state.mean, state.square, state.step)
            x, after = await self._adamw().update(stack, x, grad, before, lr, worker)
            state = state._replace(mean=after.mean, square=after.square, step=after.step)
        else:
            x, state = await self._compressed(stack, x, grad, state, lr, worker)
        if worker.measures:
            await self._observe(stack, state, worker)
        return x, state

    async def _compressed(
        self, stack: Stack, x: Tensor, grad: Tensor, state: OneBitAdamState, lr: float, worker: Worker
    ) -> tuple[Tensor, OneBitAdamState]:
        # momentum, error memories, encoding and decoding both ways, root, quotients, and the step's two
        await worker.compute(18.0 * stack.local_numel, "onebit_adam")
        beta1, beta2 = self.betas
        step = state.step + 1
        # a diverged v is not zero
        live = state.square != 0
        message = torch.where(live, beta1 * state.mean + (1 - beta1) * grad + state.error, 0)
        dims, codec = len(stack.shape), known_codec(self.codec)
        flat, real = message.flatten(-dims), live.flatten(-dims)
        programs = []
        for i, name in enumerate(stack.names):
            route = over_replicas(worker, name, "momentum", int(step), real[..., i, :])
            programs.append(two_shot(codec, flat[..., i, :], state.sum_error[..., i, :], route))
        results = await together(*programs)
        mean, own, sum_error = (torch.stack(parts, -2) for parts in zip(*results, strict=True))
        mean, own = (torch.where(live, part.unflatten(-1, message.shape[-dims:]), 0) for part in (mean, own))
        size = (state.square / (1 - beta2**self.warmup_steps)).sqrt() + self.eps
        new = self.decayed(stack, x, lr) - lr * (mean / (1 - beta1**step)) / size
        return new, OneBitAdamState(mean, state.square, step, message - own, sum_error)

    async def _observe(self, stack: Stack, state: OneBitAdamState, worker: Worker) -> None:
        """Note ``state_norm`` and ``state_drift`` (:func:`simdist.program.audit.audit`) of the errors e_j."""
        found = await audit(worker, state.error, dims=len(stack.shape))
        for i, name in enumerate(stack.names):
            worker.observe(matrix=name, state_norm=found.norm[..., i], state_drift=found.drift[..., i])

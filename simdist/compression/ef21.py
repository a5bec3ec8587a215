"""EF21 (arXiv 2106.05203, 2110.03294): workers send what changed since their last estimate (card 11)."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from simdist.codecs.setting import CodecName, known_codec
from simdist.compression.compression import Compression, Link, compressions
from simdist.exchange import as_it_is, exact_mean
from simdist.settings import Share


class Estimates(NamedTuple):
    """What workers hold of each other's gradients, flat.

    Attributes:
        own: this worker's g_i, like its gradient.
        mean: g, the mean of all members' g_i (over shards: of this member's slices).
        momentum: v_i, or empty without momentum.
        started: 0 before the first step, then 1.
    """

    own: Tensor
    mean: Tensor
    momentum: Tensor
    started: Tensor


@compressions.register("ef21")
class EF21(Compression):
    """EF21 (arXiv 2106.05203): the mean of estimates that move by the compressed difference to the gradient.

    ``c_i = C(v_i - g_i)`` travels; ``g_i += c_i``; ``g += mean c_i`` stands for the gradient, so g = mean g_i always.
    ``v_i = (1 - eta) v_i + eta G_i`` with ``eta`` below 1 (EF21-SGDM): on noisy gradients plain EF21 (eta 1) stalls.

    Means of two-shot and of rounded codecs come back in the run's number format: a second rounding would part g from
    the mean of the g_i for good. The codec should be a contraction, as for error feedback.

    Attributes:
        codec: C, see ``error_feedback``.
        eta: weight of the new gradient; 1: no momentum.
        start: ``zero``, or ``dense``: the first gradient is sent whole, in the run's number format, to begin from.
    """

    name: str = "ef21"
    codec: CodecName = "topk"
    eta: Share = 1.0
    start: Literal["zero", "dense"] = "zero"

    def init(self, link: Link, x: Tensor) -> Estimates:
        flat = link.flat(x)
        # the same on all members over replicas: a cohort must not hold it once for each
        mean = link.worker.ops.alike(flat.new_zeros(flat.shape[-1]))
        momentum = (flat if self.eta < 1 else flat.narrow(-1, 0, 0)).clone()
        return Estimates(flat.clone(), mean, momentum, torch.zeros((), dtype=x.dtype))

    async def mean(self, x: Tensor, state: Any, link: Link) -> tuple[Tensor, Estimates]:
        flat, first = link.flat(x), not bool(state.started)
        momentum = state.momentum
        if self.eta < 1:
            momentum = flat if first else (1 - self.eta) * momentum + self.eta * flat
        target = momentum if self.eta < 1 else flat
        # difference, encoding, decoding, and two sums
        await link.worker.compute(5.0 * link.numel, "compress")
        if first and self.start == "dense":
            own, mean = target, await self._whole(target, link)
        else:
            change, sent = await exact_mean(known_codec(self.codec), target - state.own, link)
            own, mean = state.own + link.clean(sent), state.mean + link.clean_mean(change)
        return link.shaped(mean), Estimates(own, mean, momentum, torch.ones_like(state.started))

    async def _whole(self, target: Tensor, link: Link) -> Tensor:
        axis = as_it_is(link.axis, target.dtype)
        if link.scatter:
            mine: Tensor = await axis.reduce_scatter(target, -2, mean=True, wire="packed")
            return mine.squeeze(-2)
        mean: Tensor = await axis.mean(target, wire="packed")
        return mean

    def memory(self, state: Any, link: Link) -> dict[str, Tensor]:
        return {"estimate": state.own.flatten(-1 - link.scatter)}

"""EF21 (arXiv 2106.05203, 2110.03294): workers send what changed since their last estimate (card 11)."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from torch import Tensor

from simdist.codecs import codec_named
from simdist.compression.compression import Compression, Link, compressions
from simdist.compression.error_feedback import CodecName
from simdist.compression.exchange import average, cut, dealt, gathered, summed, uncut
from simdist.errors import InputError
from simdist.settings import Fraction


class Estimates(NamedTuple):
    """``own``: this worker's g_i, like its gradient; ``mean``: g, all members' mean; ``momentum``: v_i, or empty."""

    own: Tensor
    mean: Tensor
    momentum: Tensor
    started: Tensor


@compressions.register("ef21")
class EF21(Compression):
    """EF21 (arXiv 2106.05203): the mean of estimates that move by the compressed difference to the gradient.

    ``c_i = C(v_i - g_i)`` travels; ``g_i += c_i``; ``g += mean c_i`` stands for the gradient, so g = mean g_i always.
    ``v_i = (1 - eta) v_i + eta G_i`` with ``eta`` below 1 (EF21-SGDM): on noisy gradients plain EF21 (eta 1) stalls.

    Attributes:
        start: ``zero``, or ``dense``: the first gradient is sent whole (under ``wire.grads``) to begin from.
    """

    name: str = "ef21"
    codec: CodecName = "topk"
    eta: Fraction = 1.0
    start: Literal["zero", "dense"] = "zero"

    def check(self, axis: str) -> None:
        super().check(axis)
        if self.eta == 0:
            raise InputError(f"compression.{axis}.eta: got 0, which lets no gradient in; expected above 0, at most 1")

    def init(self, link: Link, x: Tensor) -> Estimates:
        flat = link.flat(x)
        mean = flat.select(-2, 0) if link.scatter else flat
        momentum = flat if self.eta < 1 else flat.narrow(-1, 0, 0)
        return Estimates(flat.clone(), mean.clone(), momentum.clone(), flat.new_zeros(()))

    async def mean(self, x: Tensor, state: Any, link: Link) -> tuple[Tensor, Estimates]:
        flat, first = link.flat(x), not bool(state.started)
        momentum = state.momentum
        if self.eta < 1:
            momentum = flat if first else (1 - self.eta) * momentum + self.eta * flat
        target = momentum if self.eta < 1 else flat
        # difference, encoding, decoding, and two sums
        await link.worker.compute(5.0 * link.numel, "compress")
        if first and self.start == "dense":
            own = target
            if link.scatter:
                mean = (await link.axis.reduce_scatter(target, -2, mean=True)).squeeze(-2)
            else:
                mean = await link.axis.mean(target)
        else:
            change, sent = await self._exchange(target - state.own, link)
            own, mean = state.own + sent, state.mean + change
        return link.shaped(mean), Estimates(own, mean, momentum, state.started + (1 - state.started))

    async def _exchange(self, difference: Tensor, link: Link) -> tuple[Tensor, Tensor]:
        codec = codec_named(self.codec)
        if codec.reduction == "sum":
            return await summed(codec, difference, link)
        if link.scatter:
            messages, own = await dealt(codec, difference, link)
            return average(messages), own
        if codec.reduction == "gather":
            messages, own = await gathered(codec, difference, link)
            return average(messages), own
        # sums return exactly: a second rounding would part g from the mean of the g_i for good
        length = difference.shape[-1]
        messages, sent = await dealt(codec, cut(difference, link.axis.size), link)
        whole = await link.axis.all_gather(average(messages).unsqueeze(-2), -2, wire="grads")
        return uncut(whole, length), uncut(sent, length)

    def memory(self, state: Any, link: Link) -> dict[str, Tensor]:
        return {"estimate": state.own.flatten(-1 - link.scatter)}

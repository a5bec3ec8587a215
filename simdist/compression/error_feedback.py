"""Error feedback (Seide et al. 2014; arXiv 1809.07599, 1901.09847): what a codec left out is sent later (card 11)."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from torch import Tensor

from simdist.codecs import Codec
from simdist.codecs.setting import CodecName, known_codec
from simdist.compression.compression import Compression, Link, compressions
from simdist.exchange import average, cut, dealt, exact_mean, gathered, summed, two_shot
from simdist.settings import Fraction


class Memory(NamedTuple):
    """What was not sent yet; tensors that are not needed are empty.

    Attributes:
        error: of this worker's gradient, of its shape.
        sum_error: of the sums that this worker encoded on their way back, ``[..., slice]``.
        momentum: running sum of gradients, of the gradient's shape.
    """

    error: Tensor
    sum_error: Tensor
    momentum: Tensor


@compressions.register("error_feedback")
class ErrorFeedback(Compression):
    """Any codec, with its error added to the next gradient (EF14, 2014; EF-top-k and EF-sign, arXiv 1901.09847).

    ``p = G + decay e``; ``c = C(p)`` travels; ``e = p - c``; the mean of all c stands for the gradient. Here the
    learning rate comes after (the rule's), so errors are not rescaled when it changes. Tensor by tensor.

    The codec should be a contraction: what blows numbers up to be unbiased (``randk(rescale=True)``) makes errors grow
    without bound.

    Attributes:
        codec: what travels. Codecs that sum (casts, ``randk``) are all-reduced; ``gather`` codecs (``topk``) are
            gathered, ``(n - 1) s`` bytes; ``two_shot`` ones (``sign``, ``int8``) go to the slices' owners and back,
            with a scale for each slice. Over shards each slice is a message of its own, and goes to its owner.
        decay: 1 keeps all that was left out (then sums telescope), less forgets.
        momentum: of deep gradient compression (arXiv 1712.01887): ``u = momentum u + G`` is compressed in place of G.
            Its momentum factor masking and clipping are not done.
        way_back: how two-shot sums return: ``compressed``, with an error memory at their owners, as 1-bit Adam does
            (arXiv 2102.02888), or ``exact``, in the run's number format. Sums of codecs that sum come back in the
            codec's format, and what is rounded there is lost.
    """

    name: str = "error_feedback"
    codec: CodecName = "topk"
    decay: Fraction = 1.0
    momentum: Fraction = 0.0
    way_back: Literal["compressed", "exact"] = "compressed"

    def init(self, link: Link, x: Tensor) -> Memory:
        flat, codec = link.flat(x), known_codec(self.codec)
        # a copy: a view would keep all of the gradient of zeros in memory
        nothing = flat.narrow(-1, 0, 0).clone()
        returns = not link.scatter and codec.reduction == "two_shot" and self.way_back == "compressed"
        return Memory(
            flat.clone(),
            cut(flat, link.axis.size).select(-2, 0).clone() if returns else nothing,
            flat.clone() if self.momentum else nothing,
        )

    async def mean(self, x: Tensor, state: Any, link: Link) -> tuple[Tensor, Memory]:
        codec, memory = known_codec(self.codec), state
        new = link.flat(x)
        momentum = self.momentum * memory.momentum + new if self.momentum else memory.momentum
        p = (momentum if self.momentum else new) + self.decay * memory.error
        # encoding and decoding once each, and the sum with the error
        await link.worker.compute(4.0 * link.numel, "compress")
        mean, own, sum_error = await self._exchange(codec, p, memory.sum_error, link)
        return link.shaped(mean), Memory(link.clean(p - own), sum_error, momentum)

    async def _exchange(self, codec: Codec, p: Tensor, sum_error: Tensor, link: Link) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean, this worker's own message as the others see it, and the owner's new error."""
        if codec.reduction == "sum":
            mean, own = await summed(codec, p, link)
        elif link.scatter:
            messages, own = await dealt(codec, p, link)
            mean = average(messages)
        elif codec.reduction == "gather":
            messages, own = await gathered(codec, p, link)
            mean = average(messages)
        elif self.way_back == "exact":
            mean, own = await exact_mean(codec, p, link)
        else:
            mean, own, sum_error = await two_shot(codec, p, sum_error, link)
        return mean, own, sum_error

    def memory(self, state: Any, link: Link) -> dict[str, Tensor]:
        return {"error": state.error.flatten(-1 - link.scatter)}

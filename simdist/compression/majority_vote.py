"""signSGD with majority vote (arXiv 1802.04434, 1810.05291): one bit a number, both ways (card 12)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from simdist.codecs.bits import pack, unpack
from simdist.compression.compression import Compression, Link, compressions
from simdist.exchange import cut, encoded, total, uncut
from simdist.settings import Fraction


class Momentum(NamedTuple):
    """``momentum``: this worker's running mean of gradients."""

    momentum: Tensor


@compressions.register("majority_vote")
class MajorityVote(Compression):
    """signSGD/Signum with majority vote (arXiv 1810.05291): packed signs to slice owners, packed votes back.

    ``m_i <- beta m_i + (1 - beta) G_i``; the sign that most workers have stands for the gradient: +1 or -1 in every
    number, so that rule ``sgd`` makes Signum of it. A tie is +1, and so is the sign of zero and of NaN: one bit has no
    third value. A worker whose gradients are not finite is thus outvoted, and seen in its loss alone.
    Sent per worker, n members: ``2 ring(n) d/8`` bytes over replicas, half of that over shards (each needs the votes on
    its own rows only). Chosen on both axes, shards vote first and replicas vote on their votes.
    """

    name: str = "majority_vote"
    beta: Fraction = 0.9

    def init(self, link: Link, x: Tensor) -> Momentum:
        return Momentum(x.clone())

    async def mean(self, x: Tensor, state: Any, link: Link) -> tuple[Tensor, Momentum]:
        momentum = self.beta * state.momentum + (1 - self.beta) * x
        flat, members = link.flat(momentum), link.axis.size
        # momentum, sign, and a count of all members' votes on the own slice
        await link.worker.compute(5.0 * link.numel, "vote")
        slices = flat if link.scatter else cut(flat, members)
        axis, length = encoded(link.axis, "1 bit"), slices.shape[-1]
        arrived = await axis.all_to_all(pack(slices < 0, 1), split_dim=-2, concat_dim=-2, wire="packed")
        against = total(unpack(arrived, 1, length).long())
        negative = 2 * against > members
        if not link.scatter:
            votes = await axis.all_gather(pack(negative, 1).unsqueeze(-2), -2, part="votes", wire="packed")
            negative = uncut(unpack(votes, 1, length), flat.shape[-1]) > 0
        vote = torch.where(negative, -1.0, 1.0).to(x.dtype)
        return link.shaped(vote), Momentum(momentum)

    def memory(self, state: Any, link: Link) -> dict[str, Tensor]:
        return {"momentum": state.momentum.flatten(-link.dims)}

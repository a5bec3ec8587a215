"""EF21-Muon (arXiv 2510.00643; card 16): Muon on an estimate of the mean momentum that moves by compressed differences.

Replica j keeps a momentum M_j of its own and an estimate G_j of it that everybody could know; all keep G = mean G_j:

    M_j <- mu M_j + (1 - mu) grad_j(W)      mu is what is kept: the paper's beta, the new gradient's weight, is 1 - mu
    R_j  = C(M_j - G_j);  G_j += R_j;  G += mean R_j
    X <- (1 - lr wd) X - lr scale NS(G);    W <- W + C_s(X - W), or W = X

The paper's order begins with the step and its server sends W; here a worker's step begins with its gradient at W, which
is the same cycle, and there is no server: every replica computes G, X and W from what was gathered, with the same bits.
C acts on this worker's rows of one matrix, padding included, so that other numbers of shards compute other values; NS
acts on whole matrices in a form of :mod:`simdist.optimizers.whole_matrices`. One replica sends nothing, but C still
acts: that is the formula with n = 1.

Sent per worker and real matrix in place of the gradient's all-reduce over R replicas, s bytes of one encoded message:

- ``exchange="gather"``: ``(R-1) s`` (the card's). A low rank r makes two messages of it, of rows r and n r numbers;
- ``exchange="codec"``: as the codec sums by itself, see :func:`simdist.exchange.exact_mean`: gathered likewise
  (``topk``), all-reduced (``randk``, casts), or by owners of slices, which are messages of their own, and whose means
  return in the run's number format (``natural``, ``int8``, ``sign``): ``(R-1) (s' + d' b)``, s' the bytes of an encoded
  slice of d' = ceil(d / R) numbers of b bytes.

Not confirmed for us: the compressors' settings, how the low rank is found (here by one power step from the last right
factor), and where G_j begins (``start``).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from pydantic import model_validator
from torch import Tensor

from simdist.codecs import Codec
from simdist.codecs.setting import CodecName, known_codec
from simdist.errors import InputError
from simdist.exchange import Channel, as_it_is, average, common_noise, exact_mean, gathered, over_replicas
from simdist.optimizers.ef21_muon_low_rank import first_basis, gathered_low_rank, low_rank_flops, stacked
from simdist.optimizers.ef21_muon_measures import observe_estimates
from simdist.optimizers.muon import MuonBase
from simdist.optimizers.padding import real_rows
from simdist.optimizers.rule import MeshShape, Stack, optimizers
from simdist.optimizers.spectral import update_scale
from simdist.program import Worker, together
from simdist.settings import PositiveInt


class EF21MuonState(NamedTuple):
    """This worker's rows, ``[c, rows, n]`` but for the last two.

    Attributes:
        momentum: M_j.
        own: G_j.
        estimate: G, the same on all replicas.
        model: X, where the model's W differs from it; else empty.
        basis: the last right factor of M_j - G_j, ``[c, n, r]``; without a low rank empty.
        step: steps that were taken (a scalar).
    """

    momentum: Tensor
    own: Tensor
    estimate: Tensor
    model: Tensor
    basis: Tensor
    step: Tensor


@optimizers.register("ef21_muon")
class EF21Muon(MuonBase):
    """EF21-Muon: replicas send compressed differences of momentum, Newton-Schulz acts on their sum (arXiv 2510.00643).

    Give ``codec``, ``rank``, or both; formulas, bytes and what is not confirmed: :mod:`simdist.optimizers.ef21_muon`.
    The momentum is a running mean without Nesterov's term, as in the paper. With a C that loses nothing it is Muon's.

    Newton-Schulz brings the smallest singular values of G to 1 as well, noise of compression or not; the diagnostics
    note how far G is from the mean momentum, and both conditions.

    Attributes:
        mu: weight of the old momentum; the paper's beta is ``1 - mu``.
        codec: C, such as ``topk(fraction=0.1)`` or ``natural``; beside ``rank`` what its factors travel in (None:
            fp32). It should be a contraction (no ``randk(rescale=True)``).
        rank: r: C is the product of an m x r and an n x r factor instead, by one power step; this worker's rows count.
        warm_start: off: the power step begins anew from a Gaussian in every step.
        exchange: how messages come together.
        start: G_j begins at ``zero``, or ``dense``: at the first momentum, whose mean is all-reduced in the run's
            number format, as G would else start apart from the mean of the G_j.
        server: C_s, a codec, for a model W that follows X by compressed differences, as its broadcast by a server would
            (which is not booked); None: W = X.
    """

    name: str = "ef21_muon"
    convention: Literal["ema"] = "ema"
    nesterov: Literal[False] = False
    codec: CodecName | None = None
    rank: PositiveInt | None = None
    warm_start: bool = True
    exchange: Literal["gather", "codec"] = "gather"
    start: Literal["zero", "dense"] = "zero"
    server: CodecName | None = None

    @model_validator(mode="after")
    def _some_compressor(self) -> EF21Muon:
        if self.codec is None and self.rank is None:
            raise ValueError("got neither codec nor rank; expected one: write codec='topk(fraction=0.1)', or rank=16")
        if self.rank is not None and self.exchange == "codec":
            raise ValueError(
                "got exchange=codec beside a rank, whose factors differ from worker to worker; expected exchange=gather"
            )
        if self.rank is None and not self.warm_start:
            raise ValueError("got warm_start=false without a rank; expected a rank, or no warm_start")
        return self

    def check(self, shape: tuple[int, ...], name: str, mesh: MeshShape) -> None:
        super().check(shape, name, mesh)
        most = min(-(-shape[0] // mesh.shards), shape[1])
        if self.rank is not None and self.rank > most:
            raise InputError(
                f"got optimizer.rank {self.rank}, but of the matrix {name!r} a worker holds "
                f"{-(-shape[0] // mesh.shards)} x {shape[1]}; expected at most {most}"
            )

    def syncs_replicas(self, shape: tuple[int, ...], mesh: MeshShape) -> bool:
        return mesh.replicas > 1

    @property
    def compressor(self) -> Codec:
        """What encodes differences, or their factors."""
        return known_codec("fp32" if self.codec is None else self.codec)

    def init(self, stack: Stack, x: Tensor, worker: Worker) -> EF21MuonState:
        zeros, nothing = torch.zeros_like(x), x.new_zeros(0)
        basis = nothing if self.rank is None else first_basis(stack, self.rank, x, worker)
        model = x.clone() if self.server else nothing
        return EF21MuonState(zeros, zeros.clone(), zeros.clone(), model, basis, torch.zeros((), dtype=torch.int64))

    async def update(
        self, stack: Stack, x: Tensor, grad: Tensor, state: Any, lr: float, worker: Worker
    ) -> tuple[Tensor, EF21MuonState]:
        # momentum; difference, encoding, decoding, and the sums of both estimates
        await worker.compute(10.0 * stack.local_numel, "compress")
        momentum, _ = self.accumulate(state.momentum, grad)
        state = state._replace(momentum=momentum, step=state.step + 1)
        if self.start == "dense" and int(state.step) == 1:
            axis = as_it_is(worker.mesh.replicas, momentum.dtype)
            whole = await axis.mean(momentum, part="start", wire="packed")
            state = state._replace(own=momentum, estimate=whole)
        else:
            mean, own, basis = await self._exchanged(stack, momentum - state.own, state, worker)
            state = state._replace(own=state.own + own, estimate=state.estimate + mean, basis=basis)
        m, n = stack.shape
        size = lr * update_scale(self.scale, m, n, min(m, n))
        model = self.decayed(stack, state.model if self.server else x, lr)
        model = model - size * await self.whole_update(stack, state.estimate, worker)
        if worker.measures:
            await observe_estimates(stack, worker, state.momentum, state.own, state.estimate)
        if self.server is None:
            return model, state
        await worker.compute(5.0 * stack.local_numel, "model")
        return self._followed(stack, x, model, int(state.step), worker), state._replace(model=model)

    async def _exchanged(
        self, stack: Stack, difference: Tensor, state: EF21MuonState, worker: Worker
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean R_j, this worker's R_j, ``[..., c, rows, n]`` both, and the next basis."""
        codec, step, real = self.compressor, int(state.step), real_rows(stack, difference, worker)
        if self.rank is not None:
            await worker.compute(low_rank_flops(stack, self.rank), "low rank")
            basis = state.basis
            if not self.warm_start:
                basis = first_basis(stack, self.rank, difference, worker, step)
            mean, own, basis = await gathered_low_rank(stack, difference, basis, codec, step, worker)
        else:
            exchange = _gathered_mean if self.exchange == "gather" else exact_mean
            routes = [over_replicas(worker, name, "difference", step, kept) for name, kept in _each(stack, real)]
            messages = zip(_each(stack, difference), routes, strict=True)
            found = await together(*(exchange(codec, message, route) for (_, message), route in messages))
            mean, own = (stacked(stack, list(parts)) for parts in zip(*found, strict=True))
            basis = state.basis
        # no codec may make numbers of nothing
        return torch.where(real, mean, 0), torch.where(real, own, 0), basis

    def _followed(self, stack: Stack, x: Tensor, model: Tensor, step: int, worker: Worker) -> Tensor:
        """Return the next W: every replica draws what the server would, and takes the same step towards X."""
        assert self.server is not None
        codec, found = known_codec(self.server), []
        for name, message in _each(stack, model - x):
            route = over_replicas(worker, name, "model", step)
            found.append(codec.round_trip(message, partial(common_noise, codec, route)))
        return x + torch.where(real_rows(stack, x, worker), stacked(stack, found), 0)


async def _gathered_mean(codec: Codec, x: Tensor, channel: Channel) -> tuple[Tensor, Tensor]:
    messages, own = await gathered(codec, x, channel)
    return average(messages), own


def _each(stack: Stack, x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield the real matrices by name, flat ``[..., rows n]``; what has one column stands for all."""
    flat = x.expand(*x.shape[:-1], stack.shape[1]).flatten(-2)
    yield from ((name, flat[..., i, :]) for i, name in enumerate(stack.names))

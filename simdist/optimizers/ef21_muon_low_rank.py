"""The low-rank compressor of EF21-Muon (card 16): factors of every replica's own difference, gathered.

With D = M_j - G_j, this worker's rows of a matrix, and Q from the last step: ``P = orth(D Q)``, ``Q' = D^T P``,
``C(D) = P Q'^T``, a projection of D, hence a contraction; Q' is the next Q, up to the lengths of its columns. Factors
of different workers do not sum, so all are gathered: ``(R-1) (rows + n) r`` numbers sent per worker and matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor

from simdist.codecs import Codec
from simdist.exchange import average, gathered, over_replicas
from simdist.linalg.orthonormalize import orthonormalize
from simdist.optimizers.rule import Stack
from simdist.program import Worker, together
from simdist.program.random import normal


def first_basis(stack: Stack, rank: int, x: Tensor, worker: Worker, step: int | None = None) -> Tensor:
    """Return Gaussian right factors Q, ``[..., c, n, r]``, the same on all workers; zeros for dummies."""
    whole = x.new_zeros(stack.count, stack.shape[1], rank)
    for i, name in enumerate(stack.names):
        whole[i] = normal((stack.shape[1], rank), worker.seed, f"ef21_muon/Q/{name}", step=step).to(whole)
    return whole.reshape((1,) * (x.ndim - 3) + whole.shape)


def low_rank_flops(stack: Stack, rank: int) -> float:
    """Return the operations for a whole stack: both products with D, QR, and every replica's C(D)."""
    rows, n = stack.rows, stack.shape[1]
    products = (4.0 + 2.0 * stack.mesh.replicas) * rows * n * rank
    return stack.count * (products + 4.0 * rows * rank * rank)


async def gathered_low_rank(
    stack: Stack, difference: Tensor, basis: Tensor, codec: Codec, step: int, worker: Worker
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean of all replicas' C(D), this worker's own, ``[..., c, rows, n]`` both, and the next Q.

    Args:
        stack: the matrices.
        difference: D, this worker's rows.
        basis: Q, with the leading axes of ``difference`` or of size one.
        codec: what the factors travel in; C is the product of what arrives.
        step: for the codec's noise.
        worker: labelled for the ledger.
    """
    left = orthonormalize(difference @ basis)
    right = difference.mT @ left
    programs = []
    for i, name in enumerate(stack.names):
        for part, factor in (("P", left), ("Q", right)):
            route = over_replicas(worker, name, part, step)
            programs.append(gathered(codec, factor[..., i, :, :].flatten(-2), route))
    found = await together(*programs)
    means, owns = [], []
    for (lefts, own_left), (rights, own_right) in zip(found[::2], found[1::2], strict=True):
        means.append(average(_product(lefts, rights, basis.shape[-1])))
        owns.append(_product(own_left, own_right, basis.shape[-1]))
    # lengths of columns change no span, but D Q must not overflow in single precision; and a direction in which D had
    # nothing is tried again, as it would stay zero for good
    size = right.abs().amax(-2, keepdim=True)
    basis = torch.where(size != 0, right / torch.where(size != 0, size, 1), basis)
    return stacked(stack, means), stacked(stack, owns), basis


def _product(left: Tensor, right: Tensor, rank: int) -> Tensor:
    """Return ``P Q^T`` flat, ``[..., rows n]``, of flat factors."""
    product: Tensor = left.unflatten(-1, (-1, rank)) @ right.unflatten(-1, (-1, rank)).mT
    return product.flatten(-2)


def stacked(stack: Stack, messages: list[Tensor]) -> Tensor:
    """Return the whole stack ``[..., c, rows, n]`` from the real matrices ``[..., rows n]``; dummies are zeros."""
    real = torch.stack(messages, -2)
    dummies = real.new_zeros(*real.shape[:-2], stack.count - len(messages), real.shape[-1])
    whole: Tensor = torch.cat([real, dummies], -2).unflatten(-1, (stack.rows, stack.shape[1]))
    return whole

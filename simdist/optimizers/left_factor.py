"""The left factor of a low-rank spectral update: U = orth(P), by Householder or as microsoft/dion does (card 3).

All three give the same columns up to sign, and signs cancel in ``U Vbar^T`` as W = M U flips with U. They differ in
speed on GPUs, in rounding, and in the operations that are booked.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from simdist.linalg.deciding import decide
from simdist.linalg.orthonormalize import orthonormalize
from simdist.linalg.sketched_qr import cholesky_q, sketch_rows, sketched_qr
from simdist.optimizers.sharded_qr import pass_flops, qr_flops
from simdist.program.random import normal

LeftFactorName = Literal["householder", "rcqr", "cqr"]


def make_left_factor(p: Tensor, name: LeftFactorName, seed: int, step: int, warmup: int) -> Tensor:
    """Return orthonormal columns spanning those of each P (``[..., c, n, r]``); zero matrices stay zero.

    ``rcqr`` sketches each P by the same Gaussian, drawn anew in each step from a stream that all workers share, and is
    plain QR where n <= r; ``cqr`` is RCQR for the first ``warmup`` steps and Cholesky-QR after, with RCQR for matrices
    where that fails. Where RCQR fails too, as with dependent columns, Householder has the last word (the reference
    sets what is not a number to zero instead).
    """
    n, r = p.shape[-2:]
    if name == "householder" or n <= r:
        return orthonormalize(p)
    k = sketch_rows(r)
    sketch = normal((k, n), seed, "left factor", step=step) / math.sqrt(k)
    q, sound = sketched_qr(p, sketch)
    if name == "cqr" and step >= warmup:
        direct, good = cholesky_q(p)
        q, sound = torch.where(good, direct, q), good | sound
    # Owners alone see P: this branch saves time, and neither values nor messages depend on it.
    return q if decide(sound.all(), planned=True) else torch.where(sound, q, orthonormalize(p))


def left_factor_flops(n: int, r: int, name: LeftFactorName, step: int, warmup: int) -> float:
    """Operations for one matrix P (n x r), without those of a fallback."""
    if name == "householder" or n <= r:
        return qr_flops(n, r)
    if name == "cqr" and step >= warmup:
        return pass_flops(n, r)
    k = sketch_rows(r)
    # sketch, R of its QR, solve, then a pass of Cholesky-QR
    return 2.0 * k * n * r + 2.0 * k * r**2 - 2.0 / 3.0 * r**3 + n * r**2 + pass_flops(n, r)

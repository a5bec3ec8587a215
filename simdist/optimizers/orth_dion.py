"""Orth-Dion (arXiv 2605.16341): Dion with both factors orthonormal, so that an update has operator norm one."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from simdist.linalg.orthonormalize import orthonormalize
from simdist.optimizers.low_rank import LowRank, Plan
from simdist.optimizers.right_factor import RightFactorName
from simdist.optimizers.rule import optimizers
from simdist.optimizers.spectral import Scale
from simdist.settings import Fraction


@optimizers.register("orth_dion")
class OrthDion(LowRank):
    """One warm power step with both factors orthonormal and error feedback; hidden matrices only.

    ``error_feedback`` says what of M stays in the buffer, and ``beta`` how much (card 1):

    - ``"paper"`` (EF-P): ``R <- beta (M - captured)``; 1 keeps all that was not captured, 0 has no memory;
    - ``"code"`` (EF-C): ``R <- M - beta captured``; 1 clears what was captured, 0 never clears anything. Dion's ``mu``
      is ``beta = 1 - mu``.

    They coincide only at beta 1, the default. ``right_factor``: ``qr_pos``, ``colnorm`` (Dion's), or ``qr_raw`` (signs
    as Householder leaves them; half of the columns then climb). ``gram_passes``: 2 is CholeskyQR2; 1 halves the Gram
    bytes and loses orthogonality with the squared condition of W.
    """

    name: str = "orth_dion"
    right_factor: RightFactorName = "qr_pos"
    gram_passes: Literal[1, 2] = 2
    error_feedback: Literal["paper", "code"] = "paper"
    beta: Fraction = 1.0
    scale: Scale = "none"

    def plan(self) -> Plan:
        keep = self.beta if self.error_feedback == "paper" else 1.0
        return Plan(self.right_factor, self.gram_passes, keep=keep, clear=self.beta)

    def start(self, gaussian: Tensor) -> Tensor:
        return orthonormalize(gaussian)

"""Orth-Dion (arXiv 2605.16341): Dion with both factors orthonormal, so that an update has operator norm one."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from simdist.linalg.orthonormalize import orthonormalize
from simdist.optimizers.low_rank import LowRank, Plan
from simdist.optimizers.right_factor import RightFactorSettings
from simdist.optimizers.rule import optimizers
from simdist.optimizers.spectral import Scale
from simdist.settings import Fraction


@optimizers.register("orth_dion")
class OrthDion(RightFactorSettings, LowRank):
    """Orth-Dion: one warm power step, both factors orthonormal, error feedback (arXiv 2605.16341).

    For hidden matrices. ``error_feedback`` says what of M stays in the buffer, and ``beta`` how much (card 1):

    - ``"paper"`` (EF-P): ``R <- beta (M - captured)``; 1 keeps all that was not captured, 0 has no memory;
    - ``"code"`` (EF-C): ``R <- M - beta captured``; 1 clears what was captured, 0 never clears anything. Dion's ``mu``
      is ``beta = 1 - mu``.

    They coincide only at beta 1, the default. Which convention and value the published language models used, whether
    their QR fixed its signs, and their scale are unconfirmed. ``right_factor`` and the settings beside it:
    :class:`simdist.optimizers.right_factor.RightFactorSettings`.
    """

    name: Literal["orth_dion"] = "orth_dion"
    error_feedback: Literal["paper", "code"] = "paper"
    beta: Fraction = 1.0
    scale: Scale = "none"

    def plan(self) -> Plan:
        return Plan(self, keep=self.beta if self.error_feedback == "paper" else 1.0, clear=self.beta)

    def start(self, gaussian: Tensor) -> Tensor:
        return orthonormalize(gaussian)

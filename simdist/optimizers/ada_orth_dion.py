"""Ada-Orth-Dion (the authors' blog on arXiv 2605.16341): Orth-Dion whose rank follows the effective rank it sees."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator
from torch import Tensor

from simdist.linalg.orthonormalize import orthonormalize
from simdist.optimizers.adaptive_rank import AdaptiveRank
from simdist.optimizers.low_rank import Plan
from simdist.optimizers.right_factor import RightFactorSettings
from simdist.optimizers.rule import optimizers
from simdist.optimizers.spectral import Scale
from simdist.settings import Fraction


@optimizers.register("ada_orth_dion")
class AdaOrthDion(RightFactorSettings, AdaptiveRank):
    """Orth-Dion with a rank per matrix that follows its effective rank; hidden matrices (arXiv 2605.16341, blog).

    Published are the ingredients: an effective rank from factors that are there anyway, a running mean, multiples of
    8. **The formula and its constants are unconfirmed.** This is :class:`simdist.optimizers.orth_dion.OrthDion` with
    the controller that the authors' AdaDion V1 and V2 share (:mod:`simdist.optimizers.rank_controller`), at V2's
    constants. What their repository calls ``ada_orth_dion`` is another thing: V2's single-GPU rewrite, which decays its
    momentum twice (mu M + G, then minus (1 - mu) P R^T), with a QR whose signs are left as they fall.

    ``error_feedback`` and ``beta`` are Orth-Dion's, the right factors too, but for ``exact_svd``.
    """

    name: Literal["ada_orth_dion"] = "ada_orth_dion"
    error_feedback: Literal["paper", "code"] = "paper"
    beta: Fraction = 1.0
    scale: Scale = "none"

    @model_validator(mode="after")
    def _made_from_w(self) -> AdaOrthDion:
        if self.right_factor == "exact_svd":
            raise ValueError(
                "got right_factor exact_svd, which takes no basis V and so no rank from it; expected one that is made "
                "from W: write right_factor=qr_pos, or name=orth_dion for the oracle at a fixed rank"
            )
        return self

    def plan(self) -> Plan:
        return Plan(self, keep=self.beta if self.error_feedback == "paper" else 1.0, clear=self.beta)

    def start(self, gaussian: Tensor) -> Tensor:
        return orthonormalize(gaussian)

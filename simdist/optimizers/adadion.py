"""AdaDion V1 and V2 (the authors of arXiv 2605.16341; code only): Dion whose rank follows its effective rank (card 2).

Sources: V1 ansschh/structdion ``torchtitan/.../ortho_matrix/ada_dion/adadion.py``; V2 ansschh/adadion-cifar
``benchmark/adadion_v2/adadion_v2.py``. Settings of the controller: :mod:`simdist.optimizers.rank_controller`; what
travels: :mod:`simdist.optimizers.adaptive_rank`. Weight decay is 0 by default, as everywhere in simdist; V2 has 0.1.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from simdist.optimizers.adaptive_rank import AdaptiveRank
from simdist.optimizers.low_rank import Plan
from simdist.optimizers.right_factor import RightFactorSettings
from simdist.optimizers.rule import Decay, optimizers
from simdist.optimizers.spectral import Scale
from simdist.settings import PositiveInt, Share

#: unit columns, as Dion's
UNIT_COLUMNS = RightFactorSettings(right_factor="colnorm")


class _AdaDion(AdaptiveRank):
    """Dion's step, ``M <- B - (1-mu) (captured part)``, at the controller's rank."""

    mu: Decay = 0.95

    right: ClassVar[RightFactorSettings] = UNIT_COLUMNS

    def plan(self) -> Plan:
        return Plan(self.right, keep=1.0, clear=1.0 - self.mu)


@optimizers.register("adadion_v1")
class AdaDionV1(_AdaDion):
    """Dion with a rank per matrix by effective rank and approximation error; hidden matrices (structdion code, V1).

    The controller's quality control is on; it all-reduces two numbers a matrix and step. First rank 64, at most 256,
    both cut to the matrix; V starts with unit columns. V1 transposes matrices with m <= n and draws its Q per worker;
    here one orientation and one stream serve all meshes.
    """

    name: Literal["adadion_v1"] = "adadion_v1"
    scale: Scale = "dmin_dmax"
    rank: PositiveInt | None = 64
    rank_fraction: Share | None = None
    rank_max: PositiveInt | None = 256
    rank_max_fraction: Share = 1.0
    quality_control: bool = True

    def start(self, gaussian: Tensor) -> Tensor:
        unit: Tensor = gaussian / torch.linalg.vector_norm(gaussian, dim=0)
        return unit


@optimizers.register("adadion_v2")
class AdaDionV2(_AdaDion):
    """Dion with a rank per matrix that follows its effective rank; hidden matrices (adadion-cifar code, V2).

    As V2's FSDP code, with ``wire_form: pad_to_cap``; the default sends the active columns only. First rank a quarter
    of the shorter side, at most 0.7 of it, rounded up (the draft of the paper rounds the latter down).
    """

    name: Literal["adadion_v2"] = "adadion_v2"
    scale: Scale = "spectral"

    def start(self, gaussian: Tensor) -> Tensor:
        return gaussian

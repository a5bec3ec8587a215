"""Update rules. A new file joins by one import line here, which files its rule in the registry."""

from simdist.optimizers.ada_orth_dion import AdaOrthDion
from simdist.optimizers.adadion import AdaDionV1, AdaDionV2
from simdist.optimizers.adadion_v3 import AdaDionV3
from simdist.optimizers.adamw import AdamW
from simdist.optimizers.by_parameter import Assignment, stacks
from simdist.optimizers.dion import Dion
from simdist.optimizers.dion2 import Dion2
from simdist.optimizers.dion3 import Dion3
from simdist.optimizers.ef21_muon import EF21Muon
from simdist.optimizers.lion import Lion
from simdist.optimizers.muon import Muon
from simdist.optimizers.muon_bp import MuonBP
from simdist.optimizers.normuon import NorMuon
from simdist.optimizers.numuon import NuMuon
from simdist.optimizers.onebit_adam import OneBitAdam
from simdist.optimizers.orth_dion import OrthDion
from simdist.optimizers.rule import MeshShape, Rule, Stack, optimizers
from simdist.optimizers.sgd import SGD
from simdist.optimizers.signum import Signum

__all__ = [
    "SGD",
    "AdaDionV1",
    "AdaDionV2",
    "AdaDionV3",
    "AdaOrthDion",
    "AdamW",
    "Assignment",
    "Dion",
    "Dion2",
    "Dion3",
    "EF21Muon",
    "Lion",
    "MeshShape",
    "Muon",
    "MuonBP",
    "NorMuon",
    "NuMuon",
    "OneBitAdam",
    "OrthDion",
    "Rule",
    "Signum",
    "Stack",
    "optimizers",
    "stacks",
]

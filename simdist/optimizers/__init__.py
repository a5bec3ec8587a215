"""Update rules. A new file joins by one import line here, which files its rule in the registry."""

from simdist.optimizers.adamw import AdamW
from simdist.optimizers.by_parameter import Assignment, stacks
from simdist.optimizers.dion import Dion
from simdist.optimizers.muon import Muon
from simdist.optimizers.orth_dion import OrthDion
from simdist.optimizers.rule import MeshShape, Rule, Stack, optimizers
from simdist.optimizers.sgd import SGD

__all__ = [
    "SGD",
    "AdamW",
    "Assignment",
    "Dion",
    "MeshShape",
    "Muon",
    "OrthDion",
    "Rule",
    "Stack",
    "optimizers",
    "stacks",
]

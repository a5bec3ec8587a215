"""Routing by role and stacking by shape."""

from __future__ import annotations

import pytest

from simdist.optimizers import (
    SGD,
    AdaDionV3,
    AdamW,
    AdaOrthDion,
    Dion,
    Dion2,
    Dion3,
    Lion,
    MeshShape,
    Muon,
    OrthDion,
    Rule,
    Signum,
    optimizers,
    stacks,
)
from tests.optimizers.harness import DRIVERS, Parameter, random_gradient, train

MODEL = [
    Parameter("embed", (12, 8), "embedding"),
    Parameter("head", (12, 8), "head"),
    *[Parameter(f"square{i}", (8, 8)) for i in range(5)],
    Parameter("same shape as the head", (12, 8)),
    Parameter("gain", (8,), "vector"),
    Parameter("bias", (8,), "vector"),
]
SPECTRAL = [
    Muon(lr=0.1),
    Dion(lr=0.1, rank=2),
    OrthDion(lr=0.1, rank=2),
    Dion2(lr=0.1),
    Dion3(lr=0.1),
    AdaOrthDion(lr=0.1),
    AdaDionV3(lr=0.1),
]


@pytest.mark.parametrize("rule", SPECTRAL, ids=lambda r: r.name)
def test_only_hidden_matrices_get_the_spectral_rule(rule: Rule) -> None:
    found = {
        a.stack.names: (a.rule.name, a.stack.count, a.stack.rows, a.stack.decay)
        for a in stacks(rule, MODEL, MeshShape(2, 4))
    }
    assert found == {
        ("embed", "head"): ("adamw", 2, 3, False),
        tuple(f"square{i}" for i in range(5)): (rule.name, 8, 2, True),
        ("same shape as the head",): (rule.name, 4, 3, True),
        ("gain", "bias"): ("adamw", 2, 2, False),
    }


def test_elementwise_rules_need_no_dummies_but_keep_decay_apart() -> None:
    found = {
        a.stack.names: (a.rule.name, a.stack.count, a.stack.decay)
        for a in stacks(AdamW(lr=0.1), MODEL, MeshShape(4, 1))
    }
    assert found == {
        ("embed", "head"): ("adamw", 2, False),
        tuple(f"square{i}" for i in range(5)): ("adamw", 5, True),
        ("same shape as the head",): ("adamw", 1, True),
        ("gain", "bias"): ("adamw", 2, False),
    }


def test_titles_tell_names_and_dummies() -> None:
    assert stacks(Muon(lr=0.1), MODEL[2:5], MeshShape(4, 1))[0].stack.title == "square0+square1+square2+1 dummies"
    assert stacks(SGD(lr=0.1), MODEL[2:4], MeshShape(4, 1))[0].stack.title == "square0+square1"


@pytest.mark.parametrize("rule", SPECTRAL, ids=lambda r: r.name)
def test_the_auxiliary_rule_is_its_own(rule: Rule) -> None:
    """A whole model under a spectral rule: embeddings and vectors end exactly where plain AdamW brings them."""
    mesh, gradient = MeshShape(2, 2), random_gradient(MODEL)
    auxiliary = AdamW(lr=0.03, betas=(0.8, 0.9))
    mixed = rule.model_copy(update={"auxiliary": auxiliary})
    one, other = (train(DRIVERS[0], mesh, r, MODEL, gradient).results[0].parameters for r in (mixed, auxiliary))
    for parameter in MODEL:
        same = bool((one[parameter.name] == other[parameter.name]).all())
        assert same == (parameter.role != "matrix")


def test_registry_holds_every_rule_with_its_own_name_and_a_summary() -> None:
    assert {"sgd", "adamw", "muon", "dion", "orth_dion"} <= set(optimizers.names())
    for name, rule in optimizers.items():
        assert rule.model_fields["name"].default == name
        assert rule.__doc__


@pytest.mark.parametrize(
    "rule", [*SPECTRAL, SGD(lr=0.1, momentum=0.5), AdamW(lr=0.1), Lion(lr=0.1), Signum(lr=0.1)], ids=lambda r: r.name
)
def test_settings_survive_a_round_trip(rule: Rule) -> None:
    assert type(rule).model_validate(rule.model_dump()) == rule
    assert type(rule).model_validate_json(rule.model_dump_json()) == rule

"""Every torch optimizer that is said to act number by number does: shards train as whole tensors do."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from simdist.optimizers import MeshShape, optimizers
from simdist.optimizers.torch_elementwise import ELEMENTWISE, acts_by_number
from simdist.optimizers.torch_optimizer import TorchOptimizer, adapted
from simdist.optimizers.torch_trial import difference_on_shards
from tests.optimizers.harness import Cohort, Coroutines
from tests.optimizers.torch_judge import Make, agrees


def rule_of(path: str, **arguments: Any) -> TorchOptimizer:
    made = adapted(optimizers.get(path))
    assert made is not None
    if made.model_fields["lr"].is_required():
        arguments["lr"] = 0.01
    return made(**arguments)


@pytest.mark.parametrize("path", ELEMENTWISE)
def test_on_shards_as_on_whole_tensors(path: str) -> None:
    rule = rule_of(path)
    assert rule.on_shards
    outcome = agrees(rule, judge(rule), MeshShape(2, 4), Cohort())
    assert outcome.sent(factors=4, params=4) == 0
    one = agrees(rule, judge(rule), MeshShape(1, 2), Coroutines())
    per_number = (each.flops / sum(a.stack.local_numel for a in each.results[0].assignments) for each in (one, outcome))
    assert next(per_number) == next(per_number) > 0, "each worker does the same work on every engine and mesh"


def judge(rule: TorchOptimizer) -> Make:
    def make(parameters: list[torch.nn.Parameter], no_decay: dict[str, float]) -> torch.optim.Optimizer:
        takes = "weight_decay" in rule.signature.arguments
        return rule.torch_class(parameters, lr=rule.lr, **(no_decay if takes else {}))

    return make


def variants(path: str) -> list[dict[str, Any]]:
    """Each switch of a class turned, and weight decay: what the class refuses is left out."""
    torch_class: Any = optimizers.get(path)
    known = inspect.signature(torch_class).parameters
    found: list[dict[str, Any]] = [{key: not p.default} for key, p in known.items() if isinstance(p.default, bool)]
    found += [{"foreach": False}] if "foreach" in known else []
    found += [{"weight_decay": 0.1}] if "weight_decay" in known else []
    return [{**each, "momentum": 0.9} if "nesterov" in each and "momentum" in known else each for each in found]


@pytest.mark.parametrize("path", ELEMENTWISE)
def test_switches_do_not_change_that(path: str) -> None:
    for arguments in variants(path):
        try:
            rule = rule_of(path, **arguments)
        except ValidationError:
            assert arguments.keys() & {"capturable", "differentiable"}, f"refused: {arguments}"
            continue
        assert rule.on_shards
        assert difference_on_shards(rule, steps=6) < 1e-10, arguments


def test_a_global_norm_is_taken_on_whole_tensors() -> None:
    adan = rule_of("pytorch_optimizer:Adan", max_grad_norm=0.5)
    assert not adan.on_shards
    assert difference_on_shards(adan) > 1e-6
    assert not acts_by_number(adan.torch_class, {"max_grad_norm": 0.5})


def test_options_that_no_signature_names_are_not_vouched_for() -> None:
    assert rule_of("pytorch_optimizer:Lion").on_shards
    assert not rule_of("pytorch_optimizer:Lion", kwargs={"use_gc": True}).on_shards
    assert not rule_of("torch.optim:SGD", group={"momentum": 0.5}).on_shards


def test_a_subclass_of_a_known_class_is_unknown() -> None:
    class Mine(torch.optim.SGD):
        pass

    made = adapted(Mine)
    assert made is not None
    assert not made(lr=0.1).on_shards

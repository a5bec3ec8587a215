"""A user's own module: units, roles, shapes, paths, and what is refused."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from simdist.errors import InputError
from simdist.registry import load_file
from simdist.workloads import ModuleWorkload
from simdist.workloads.module import ModuleTask

CPU = torch.device("cpu")
FILE = Path(__file__).with_name("user_model.py")


def settings(**changes: Any) -> ModuleWorkload:
    names = {"model": "make_net", "loss": "cross_entropy", "dataset": "make_data"}
    paths = {key: f"{FILE}:{changes.pop(key, name)}" for key, name in names.items()}
    return ModuleWorkload(**{"batch": 4, **paths, **changes})


def build(**changes: Any) -> ModuleTask:
    return settings(**changes).build(0, torch.float32, CPU)


def units(task: ModuleTask) -> dict[str, list[str]]:
    return {unit.name: [spec.name for spec in unit.params] for unit in task.units}


def roles(task: ModuleTask) -> dict[str, str]:
    return {spec.name: spec.role for unit in task.units for spec in unit.params}


def test_elements_of_the_outermost_list_are_units() -> None:
    task = build()
    assert units(task) == {
        "root": ["scale", "conv.weight", "conv.bias", "head.weight", "head.bias"],
        "blocks.0": ["blocks.0.weight", "blocks.0.bias"],
        "blocks.1": ["blocks.1.weight", "blocks.1.bias"],
    }
    assert [unit.root for unit in task.units] == [True, False, False]


def test_sequential_has_a_unit_per_layer_and_no_root() -> None:
    task = build(model="make_sequential")
    assert units(task) == {"0": ["0.weight", "0.bias"], "2": ["2.weight", "2.bias"]}
    assert not any(unit.root for unit in task.units)


def test_units_can_be_chosen() -> None:
    assert list(units(build(units=("blocks.*", "head")))) == ["root", "blocks.0", "blocks.1", "head"]
    assert list(units(build(units=()))) == ["root"]
    with pytest.raises(InputError, match=r"matches no submodule .* Did you mean 'head'"):
        build(units=("heed",))


def test_roles_follow_the_layers_and_can_be_overridden() -> None:
    default = roles(build())
    assert {name: role for name, role in default.items() if role != "vector"} == {
        "blocks.0.weight": "matrix",
        "blocks.1.weight": "matrix",
        "head.weight": "head",
    }
    changed = roles(build(roles={"conv.weight": "matrix", "blocks.*.weight": "embedding"}))
    assert changed["conv.weight"] == "matrix"
    assert changed["blocks.1.weight"] == "embedding"
    with pytest.raises(InputError, match="matches no parameter"):
        build(roles={"convolution": "matrix"})
    with pytest.raises(InputError, match=r"role 'matrix' for 'head.bias' of shape \(3,\)"):
        build(roles={"head.*": "matrix"})


def test_parameters_are_held_in_one_or_two_dimensions() -> None:
    shapes = {name: tuple(value.shape) for name, value in build().initial().items()}
    assert shapes["conv.weight"] == (2, 3)
    assert shapes["scale"] == (1,)


def test_flops_by_unit_equal_the_closed_form() -> None:
    root, first, second = build().units
    assert first.forward_flops == second.forward_flops == 4 * 2 * 12 * 12
    # convolution: 6 places, 2 channels, 3 taps; head 12 x 3
    assert root.forward_flops == 4 * 2 * (6 * 2 * 3 + 12 * 3)
    total = sum(unit.backward_flops for unit in (root, first, second))
    # twice the forward pass, less the gradient to the data
    assert total == pytest.approx(4 * 2 * (6 * 2 * 3 + 2 * (2 * 144 + 36)))


def test_functions_are_stored_as_paths_that_lead_back() -> None:
    user = load_file(FILE)
    given = ModuleWorkload(model=user.make_net, loss=user.cross_entropy, dataset=user.make_data, batch=4)
    assert given == settings()
    assert given.model == f"{FILE.resolve()}:make_net"
    torch_loss = torch.nn.functional.cross_entropy
    library = ModuleWorkload(model=user.Net, loss=torch_loss, dataset=user.Items, batch=4)
    assert library.loss == "torch.nn.functional:cross_entropy"
    assert library.build(0, torch.float32, CPU).units


def test_relative_file_paths_become_absolute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FILE.parent)
    assert (
        settings(model="make_net").model
        == ModuleWorkload(model="user_model.py:make_net", loss="a:b", dataset="a:b").model
    )


@pytest.mark.parametrize("thing", [lambda: None, functools.partial(print), 3, "make_model", ":x", "x.py:"])
def test_what_cannot_be_named_is_refused(thing: object) -> None:
    with pytest.raises(ValidationError, match=r"expected (a function|an import path)"):
        ModuleWorkload(model=thing, loss="a:b", dataset="a:b")


def test_random_state_of_the_process_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build()
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "make_absent"}, "has no 'make_absent'"),
        ({"model": "make_nothing"}, "returned int; expected an nn.Module"),
        ({"model": "make_broken"}, "raised RuntimeError: no such weights"),
        ({"model": "make_dropout"}, r"Dropout at '1' and dropout 0.5.* expected dropout 0"),
        ({"model": "make_batch_norm"}, "BatchNorm1d at '1'.* expected LayerNorm"),
        ({"model": "make_noisy"}, "loss differs between two calls"),
        ({"model": "make_counting"}, "buffer 'calls' changes"),
        ({"loss": "sum_loss"}, "reduction='mean'"),
        ({"loss": "vector_loss"}, r"returned shape \(4,\).*expected a scalar"),
        ({"dataset": "make_empty"}, "empty dataset"),
        ({"dataset": "make_few"}, "5 examples, 0 of them held out"),
        ({"dataset": "make_iterator"}, "expected a map-style dataset"),
        ({"dataset": "Ragged"}, "do not stack"),
        ({"dataset": "make_nothing"}, "returned int; expected a map-style dataset"),
    ],
)
def test_bad_modules_losses_and_datasets_are_refused(changes: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(**changes)


def test_wrong_shapes_are_reported_with_the_batch() -> None:
    with pytest.raises(InputError, match=r"raised RuntimeError on a batch of shapes \[\(4, 8\), \(4,\)\]"):
        build(model="make_wrong_width")

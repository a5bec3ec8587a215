"""States as plain data: nothing is lost on the way to a file and back, and foreign data is refused by field."""

from __future__ import annotations

import io
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from simdist.errors import ProgramError
from simdist.program.state import Loose, Plain, from_plain, to_plain


class Inner(NamedTuple):
    basis: Tensor
    rank: Any


class Nothing(NamedTuple):
    pass


class Outer(NamedTuple):
    momentum: Tensor
    inner: Inner
    several: list[Inner]
    pair: tuple[Tensor, float]
    named: dict[str, Inner | None]
    on: bool
    absent: Inner | None
    nothing: Nothing
    loose: Loose


def outer(seed: int, r: int = 2) -> Outer:
    draw = torch.Generator().manual_seed(seed)

    def inner() -> Inner:
        return Inner(torch.randn(3, r, generator=draw, dtype=torch.float64), r)

    return Outer(
        momentum=torch.randn(4, generator=draw).bfloat16(),
        inner=inner(),
        several=[inner(), inner()],
        pair=(torch.tensor(seed, dtype=torch.int64), 0.5),
        named={"a": inner(), "b": None},
        on=True,
        absent=None,
        nothing=Nothing(),
        loose=Loose(word="text"),
    )


def through_a_file(plain: Plain) -> Any:
    file = io.BytesIO()
    torch.save(plain, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    else:
        assert one == other


@pytest.mark.parametrize("r", [2, 5], ids=["same sizes", "another rank"])
def test_a_state_comes_back_from_a_file_as_it_was(r: int) -> None:
    state = outer(1, r)
    assert_same(from_plain(outer(2), through_a_file(to_plain(state))), state)


def test_plain_data_holds_no_class_of_ours() -> None:
    plain = to_plain(outer(1))
    assert isinstance(plain, dict)
    assert list(plain) == list(Outer._fields)
    assert type(plain["inner"]) is dict
    assert plain["nothing"] == {}
    assert type(plain["several"]) is type(plain["pair"]) is list


def test_a_view_is_saved_without_the_rest_of_its_storage() -> None:
    whole = torch.randn(1000, 10)
    part, repeated = whole[3:4], whole[:1, :1].expand(5, 5)
    plain = to_plain([part, repeated, whole])
    assert isinstance(plain, list)
    sizes = [tensor.untyped_storage().nbytes() for tensor in plain if isinstance(tensor, Tensor)]
    assert sizes == [40, 100, 40000]
    assert_same(plain, [part, repeated, whole])


def test_tensors_go_to_the_device_of_their_counterpart() -> None:
    there = from_plain(Inner(torch.zeros(2, device="meta"), 1), {"basis": torch.ones(5), "rank": 2})
    assert there.basis.device.type == "meta"
    assert there.basis.shape == (5,)


def test_a_loose_part_may_change_its_form() -> None:
    """As it fills, or shrinks: what is written is what is read."""
    empty, full = Loose(), Loose(memories=[{"mean": torch.ones(2), "kind": "amsgrad", "on": None}], whole=3)
    for before, after in ((empty, full), (full, empty)):
        back = from_plain(Inner(torch.zeros(1), before), through_a_file(to_plain(Inner(torch.ones(1), after))))
        assert_same(back, Inner(torch.ones(1), after))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": (1, 2)}, r"state\['x'\]\['a'\]: got a tuple, which would come back as a list; expected a list"),
        ([Nothing()], r"state\['x'\]\[0\]: got a tuple"),
        ([object()], r"state\['x'\]\[0\]: got a value of type object"),
    ],
)
def test_a_loose_part_holds_plain_data_only(value: Any, message: str) -> None:
    with pytest.raises(ProgramError, match=message):
        to_plain(Loose(x=value))


def test_gradients_do_not_travel() -> None:
    tensor = torch.ones(2, requires_grad=True) * 2
    plain = to_plain(Inner(tensor, 1))
    assert isinstance(plain, dict)
    assert isinstance(plain["basis"], Tensor)
    assert not plain["basis"].requires_grad


def without(plain: Any, *keys: str) -> Any:
    if len(keys) == 1:
        return {key: value for key, value in plain.items() if key != keys[0]}
    return {**plain, keys[0]: without(plain[keys[0]], *keys[1:])}


def changed(plain: Any, value: Any, *keys: str | int) -> Any:
    if not keys:
        return value
    if isinstance(plain, list):
        return [changed(item, value, *keys[1:]) if i == keys[0] else item for i, item in enumerate(plain)]
    return {**plain, keys[0]: changed(plain.get(keys[0]), value, *keys[1:])}


PLAIN: Any = to_plain(outer(1))
BAD: list[tuple[Any, str]] = [
    (without(PLAIN, "momentum"), r"state\.momentum is missing; expected momentum, inner"),
    (without(PLAIN, "inner", "rank"), r"state\.inner\.rank is missing; expected basis, rank"),
    (without(PLAIN, "named", "b"), r"state\.named\['b'\] is missing"),
    (changed(PLAIN, 1.0, "inner", "extra"), r"state\.inner\.extra is unknown"),
    (changed(PLAIN, 1.0, "named", "c"), r"state\.named\['c'\] is unknown"),
    (changed(PLAIN, 1.0, "nothing", "x"), r"state\.nothing\.x is unknown; expected nothing"),
    (changed(PLAIN, torch.zeros(4), "momentum"), r"state\.momentum: got .* in float32; expected .* in bfloat16"),
    (
        changed(PLAIN, torch.zeros(1, 3, 2, dtype=torch.float64), "several", 1, "basis"),
        r"state\.several\[1\]\.basis: got a tensor of 3 dimensions in float64; expected a tensor of 2 dimensions",
    ),
    (changed(PLAIN, [1.0], "inner", "basis"), r"state\.inner\.basis: got a value of type list; expected a tensor"),
    (changed(PLAIN, None, "inner", "basis"), r"state\.inner\.basis: got None; expected a tensor"),
    (changed(PLAIN, None, "inner"), r"state\.inner: got None; expected a dict of basis, rank"),
    (changed(PLAIN, PLAIN["inner"], "absent"), r"state\.absent: got a value of type dict; expected None"),
    (changed(PLAIN, [], "several"), r"state\.several: got a list of 0; expected a list of 2"),
    (changed(PLAIN, {}, "several"), r"state\.several: got a value of type dict; expected a list of 2"),
    (changed(PLAIN, 2.0, "inner", "rank"), r"state\.inner\.rank: got a value of type float; expected .* int"),
    (changed(PLAIN, 1, "on"), r"state\.on: got a value of type int; expected a value of type bool"),
    (changed(PLAIN, 1, "pair", 1), r"state\.pair\[1\]: got a value of type int; expected a value of type float"),
    ([], r"state: got a value of type list; expected a dict of momentum"),
    (changed(PLAIN, [], "loose"), r"state\.loose: got a value of type list; expected a dict"),
]


@pytest.mark.parametrize(("plain", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_torn_or_foreign_data_is_refused_by_field(plain: Any, message: str) -> None:
    with pytest.raises(ProgramError, match=message):
        from_plain(outer(2), plain)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            Outer._make([None] * 6 + ["two", None, None]),
            r"state\.absent: got a value of type str.*named tuples, lists or dicts",
        ),
        ({"a": [object()]}, r"state\['a'\]\[0\]: got a value of type object"),
        ([{1: 2}], r"state\[0\]: got the key 1 in a dict; expected text"),
    ],
)
def test_what_a_file_cannot_hold_is_refused_by_field(value: Any, message: str) -> None:
    with pytest.raises(ProgramError, match=message):
        to_plain(value)

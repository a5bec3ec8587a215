"""States as plain data and back, for checkpoints: named tuples become dicts that ``torch.load`` reads as weights only.

A state is a nest of named tuples, tuples, lists and dicts (keys are text) around tensors, numbers, booleans and None.
Classes are not written down: a state is rebuilt along one of the same form, which ``init`` makes. So a file of plain
data runs no code when it is read, and a renamed class does not break it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias, TypeVar, Union, cast

from torch import Tensor

from simdist.errors import ProgramError

#: what ``torch.load(..., weights_only=True)`` gives back as it was saved
Plain: TypeAlias = Union[Tensor, bool, int, float, str, "list[Plain]", "dict[str, Plain]", None]

T = TypeVar("T")


class Loose(dict[str, Any]):
    """A part of a state whose form changes as it fills, such as what a torch optimizer holds: read as it was written.

    It holds plain data only: dicts with text as keys, lists, tensors, numbers, booleans, None, and text. Nothing of it
    is checked or moved to another device when it is read.
    """


def to_plain(state: Any) -> Plain:
    """Return a state as plain data: named tuples as dicts by field, tuples as lists.

    Tensors are detached but not copied (rules never change a state in place), except those that view a part of a larger
    storage or repeat numbers: ``torch.save`` would write the whole storage, or lose the repetition.

    Raises:
        ProgramError: naming the field, for anything else than the nests described above.
    """
    return _to_plain(state, "state")


def from_plain(like: T, plain: Plain) -> T:
    """Return the state that :func:`to_plain` had turned into ``plain``, in the form of ``like``.

    ``like`` is any state of the same rule and parameters, a fresh one say; of its values only the form counts. Tensors
    go to the device of their counterpart in ``like``. Their sizes may differ from it, since ranks may adapt; data type
    and number of dimensions may not. A field that is None in ``like`` must be None.

    Raises:
        ProgramError: naming the field, for missing or unknown fields, another length, kind of value, data type
            or number of dimensions.
    """
    return cast("T", _from_plain(like, plain, "state"))


def tensors_of(state: Any) -> Iterator[Tensor]:
    """Yield every tensor of a state, in the order of its fields."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, (tuple, list)):
        for item in state:
            yield from tensors_of(item)
    elif isinstance(state, dict):
        for item in state.values():
            yield from tensors_of(item)


def _to_plain(value: Any, path: str, loose: bool = False) -> Plain:
    if isinstance(value, Tensor):
        tensor = value.detach()
        own = tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()
        return tensor if own else tensor.clone()
    if value is None or type(value) in (bool, int, float):
        return cast("Plain", value)
    if isinstance(value, tuple) and loose:
        raise ProgramError(f"{path}: got a tuple, which would come back as a list; expected a list")
    fields = _fields(value)
    if fields is not None:
        return {name: _to_plain(getattr(value, name), f"{path}.{name}") for name in fields}
    if isinstance(value, (list, tuple)):
        return [_to_plain(item, f"{path}[{i}]", loose) for i, item in enumerate(value)]
    if isinstance(value, str) and loose:
        return value
    if isinstance(value, dict):
        loose = loose or isinstance(value, Loose)
        for key in value:
            if not isinstance(key, str):
                raise ProgramError(f"{path}: got the key {key!r} in a dict; expected text, or write a list")
        return {key: _to_plain(item, f"{path}[{key!r}]", loose) for key, item in value.items()}
    raise ProgramError(
        f"{path}: got {_kind(value)}, which a checkpoint cannot hold; expected tensors, numbers, booleans or None in "
        "named tuples, lists or dicts"
    )


def _from_plain(like: Any, plain: Any, path: str) -> Any:
    if isinstance(like, Tensor):
        return _tensor(like, plain, path)
    fields = _fields(like)
    if fields is not None:
        return type(like)(**_items({name: getattr(like, name) for name in fields}, plain, path, "{}.{}"))
    if isinstance(like, Loose):
        if not isinstance(plain, dict):
            raise ProgramError(f"{path}: got {_kind(plain)}; expected a dict")
        return Loose(plain)
    if isinstance(like, dict):
        return _items(like, plain, path, "{}[{!r}]")
    if isinstance(like, (list, tuple)):
        if not isinstance(plain, list) or len(plain) != len(like):
            got = f"a list of {len(plain)}" if isinstance(plain, list) else _kind(plain)
            raise ProgramError(f"{path}: got {got}; expected a list of {len(like)}")
        pairs = enumerate(zip(like, plain, strict=True))
        return type(like)(_from_plain(one, other, f"{path}[{i}]") for i, (one, other) in pairs)
    if type(plain) is not type(like):
        raise ProgramError(f"{path}: got {_kind(plain)}; expected {_kind(like)}")
    return plain


def _items(like: dict[str, Any], plain: Any, path: str, item: str) -> dict[str, Any]:
    if not isinstance(plain, dict):
        raise ProgramError(f"{path}: got {_kind(plain)}; expected a dict of {', '.join(like) or 'nothing'}")
    missing, unknown = [key for key in like if key not in plain], [key for key in plain if key not in like]
    if missing or unknown:
        wrong = [
            f"{item.format(path, key)} is {what}"
            for what, keys in (("missing", missing), ("unknown", unknown))
            for key in keys
        ]
        raise ProgramError(
            f"{'; '.join(wrong)}; expected {', '.join(like) or 'nothing'}: the state is torn, or another rule wrote it"
        )
    return {key: _from_plain(like[key], plain[key], item.format(path, key)) for key in like}


def _tensor(like: Tensor, plain: Any, path: str) -> Tensor:
    if not isinstance(plain, Tensor):
        raise ProgramError(f"{path}: got {_kind(plain)}; expected {_kind(like)}")
    if plain.dtype != like.dtype or plain.ndim != like.ndim:
        raise ProgramError(
            f"{path}: got {_kind(plain)}; expected {_kind(like)} (sizes may differ): the state was written by "
            "another rule, engine or precision"
        )
    return plain.to(like.device)


def _fields(value: Any) -> tuple[str, ...] | None:
    return cast("tuple[str, ...]", value._fields) if isinstance(value, tuple) and hasattr(value, "_fields") else None


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of {value.ndim} dimensions in {str(value.dtype).removeprefix('torch.')}"
    return "None" if value is None else f"a value of type {type(value).__name__}"

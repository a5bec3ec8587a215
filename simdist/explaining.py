"""pydantic's findings as messages for people: the dotted key, what was got, what was expected, the nearest key."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from simdist.choosing import PROBLEM, unknown_key
from simdist.errors import suggest
from simdist.settings import Settings


def explain(error: ValidationError) -> str:
    """Return one line per problem, such as ``mesh.shards: got 0; expected a number above zero``."""
    model = _model_called(error.title)
    lines = []
    for found in error.errors(include_url=False):
        key = ".".join(_keys(model, found["loc"]))
        message = _message(model, found)
        # errors about several keys at once name the one to change themselves
        lines.append(f"{key}: {message}" if key else message)
    return "\n".join(dict.fromkeys(lines))


def _message(model: type[BaseModel] | None, found: ErrorDetails) -> str:
    kind, got, context = found["type"], found["input"], found.get("ctx", {})
    if kind == PROBLEM:
        return str(context["message"])
    if kind == "value_error":
        return str(context["error"])
    if kind == "extra_forbidden":
        *outer, key = found["loc"]
        inner = _model_at(model, outer)
        return unknown_key(str(key), inner.model_fields if inner else [])
    if kind == "missing":
        return "got nothing; expected a value, since this key has no default"
    if kind == "literal_error":
        known = [text.strip("'") for text in context["expected"].replace(" or ", ", ").split(", ")]
        return f"got {got!r}; expected one of {', '.join(known)}.{suggest(str(got), known)}"
    if kind in _EXPECTED:
        return f"got {got!r}; expected {_EXPECTED[kind]}"
    return f"got {got!r}; {found['msg'][:1].lower()}{found['msg'][1:]}"


_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "a text",
    "dict_type": "a section of keys and values",
    "model_type": "a section of keys and values",
    "model_attributes_type": "a section of keys and values",
    "list_type": "a list",
    "tuple_type": "a list",
}


def _subclasses(base: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for each in base.__subclasses__():
        yield each
        yield from _subclasses(each)


def _model_called(title: str) -> type[BaseModel] | None:
    return next((each for each in _subclasses(Settings) if each.__name__ == title), None)


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """Return the settings class within ``X``, ``X | None`` or ``Annotated[X, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (typing.Annotated, typing.Union, types.UnionType):
        return next((found for each in typing.get_args(annotation) if (found := _model_of(each))), None)
    return None


def _model_at(model: type[BaseModel] | None, keys: list[int | str]) -> type[BaseModel] | None:
    for key in keys:
        if model is None or key not in model.model_fields:
            return None
        model = _model_of(model.model_fields[str(key)].annotation)
    return model


def _keys(model: type[BaseModel] | None, location: tuple[int | str, ...]) -> list[str]:
    """Return the keys of an error's place, without pydantic's own marks for unions and dictionary keys."""
    keys = [str(part) for part in location]
    return [key for key in keys if "[" not in key and "(" not in key]

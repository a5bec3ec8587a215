"""Settings chosen by name: ``optimizer: {name: muon, lr: 0.02}`` becomes a ``Muon(lr=0.02)``, and back.

A field of such a kind takes an instance, a name, or a section with the name and the chosen class' own keys. A user's
class goes by its import path, ``package.module:Name`` or ``file.py:Name``, so that a saved scenario finds it again.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError, to_jsonable_python

from simdist.errors import InputError, suggest
from simdist.registry import Registry, name_of
from simdist.settings import Settings
from simdist.units import Rate, Seconds, format_rate, format_time, parse_rate, parse_time

#: type of the errors made here; their message is complete as it stands
PROBLEM = "simdist_problem"


def problem(title: str, key: str, got: Any, message: str) -> ValidationError:
    """Return a pydantic error at ``key``, to be raised inside a validator: outer keys are put in front by pydantic."""
    error = PydanticCustomError(PROBLEM, "{message}", {"message": message})
    return ValidationError.from_exception_data(title, [{"type": error, "loc": (key,), "input": got}])


def unknown_key(key: str, known: Iterable[str]) -> str:
    """Return the message for a key that nobody knows."""
    known = list(known)
    return f"got an unknown key; expected one of {', '.join(known)}.{suggest(key, known)}"


@dataclass(frozen=True)
class Kind:
    """One kind of thing that is chosen by name.

    Attributes:
        registry: names to classes.
        base: what the classes derive from.
        package: its import fills the registry.
        key: the field that holds the name.
        default: name that is meant when none is given.
        adapt: returns a class derived from ``base`` for a thing that stands behind an import path and is none (the same
            class each time), or None. Raises InputError where the thing cannot be adapted, with the reason.
        adapts: what ``adapt`` takes, for messages.
    """

    registry: Registry[Any]
    base: type[Settings]
    package: str
    key: str = "name"
    default: str | None = None
    adapt: Callable[[Any], type[Settings] | None] | None = None
    adapts: str = ""

    @property
    def title(self) -> str:
        return self.registry.kind

    def filled(self) -> Registry[Any]:
        """Return the registry with everything that simdist brings along."""
        importlib.import_module(self.package)
        return self.registry

    def class_of(self, name: Any) -> type[Settings]:
        """Return the class that ``name`` stands for.

        Raises:
            InputError: for an unknown name, or an import path to something else.
        """
        try:
            found = self.filled().get(name)
        except InputError as error:
            if isinstance(error.__cause__, ImportError):
                raise InputError(f"{error}; expected package.module:Name or file.py:Name") from error
            raise
        if not (inspect.isclass(found) and issubclass(found, self.base)):
            adapted = self.adapt(found) if self.adapt else None
            if adapted is None:
                expected = " or ".join(each for each in (self.base.__name__, self.adapts) if each)
                raise InputError(f"got {name!r} as {self.title}; expected a class derived from {expected}")
            found = adapted
        if inspect.isabstract(found):
            missing = ", ".join(sorted(found.__abstractmethods__))
            raise InputError(f"got {name!r} as {self.title}, which is abstract; expected it to define {missing}")
        return found

    def choose(self, value: Any) -> Any:
        """Return an instance for what stands in a scenario (the validator of the field)."""
        if isinstance(value, self.base):
            return value
        if isinstance(value, str):
            value = {self.key: value}
        if not isinstance(value, Mapping):
            raise ValueError(f"got {value!r}; expected a {self.title} by name, or a section with {self.key!r}")
        rest = dict(value)
        name = rest.pop(self.key, self.default)
        if name is None:
            known = ", ".join(self.filled().names())
            raise problem(self.title, self.key, value, f"got nothing; expected the name of a {self.title}: {known}")
        try:
            chosen = self.class_of(name)
        except InputError as error:
            raise problem(self.title, self.key, name, str(error)) from error
        for key in rest:
            if key not in chosen.model_fields:
                raise problem(self.title, str(key), rest[key], unknown_key(str(key), chosen.model_fields))
        if chosen.model_fields[self.key].is_required():
            rest[self.key] = name
        return chosen.model_validate(rest)

    def name(self, thing: Settings) -> str:
        """Return the name that leads back to an instance's class."""
        own = type(thing)
        for name, registered in self.filled().items():
            if registered is own:
                return name
        path = name_of(own)
        file = inspect.getsourcefile(own) if own.__module__ == "__main__" else None
        if file:  # a script that runs itself: another process finds its classes by the file
            path = f"{Path(file).resolve()}:{own.__qualname__}"
        if "<locals>" in path:
            raise InputError(
                f"got the {self.title} class {own.__qualname__}, defined inside a function, so that a saved scenario "
                f"could not find it; expected a class at the top level of its file"
            )
        return path


def plain(value: Any, kinds: Iterable[Kind]) -> Any:
    """Return settings as plain data (dicts, lists, texts, numbers) that validate to equal settings.

    Rates and times become readable texts where these parse back exactly.
    """
    if isinstance(value, BaseModel):
        data = {}
        for key, field in type(value).model_fields.items():
            data[key] = _readable(field.metadata, plain(getattr(value, key), kinds))
        for kind in kinds:
            if isinstance(value, kind.base):
                data[kind.key] = kind.name(value)
        return data
    if isinstance(value, Mapping):
        return {key: plain(item, kinds) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, kinds) for item in value]
    return to_jsonable_python(value)


# an Annotated alias has its metadata at run time only, which typing does not tell
_READABLE = [
    (Rate.__metadata__[0], format_rate, parse_rate),  # type: ignore[attr-defined]
    (Seconds.__metadata__[0], format_time, parse_time),  # type: ignore[attr-defined]
]


def _readable(metadata: list[Any], value: Any) -> Any:
    for marker, write, read in _READABLE:
        if isinstance(value, float) and marker in metadata:
            text = write(value)
            return text if read(text) == value else value
    return value

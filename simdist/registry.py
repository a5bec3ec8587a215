"""Names to things: the one mechanism behind ``optimizer.name``, ``wire.*``, ``network.topology`` and ``simdist list``.

A registry is filled by decorator, one line per thing. A name with a colon is an import path,
``package.module:Name`` or ``path/to/file.py:Name``, so that a user's own class needs no registration.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from simdist.errors import InputError, suggest

T = TypeVar("T")

#: packages whose classes are named by import path, and the extra that installs them
EXTRAS = {"pytorch_optimizer": "torch-optimizers"}


def load_file(path: Path) -> ModuleType:
    """Import a Python file as a module, once per path.

    Raises:
        InputError: when the file is missing or raises while it is imported.
    """
    path = path.resolve()
    if not path.is_file():
        raise InputError(f"got the file {str(path)!r}, which does not exist; expected a Python file")
    name = f"simdist_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"got the file {str(path)!r}; expected a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's file raises
        del sys.modules[name]
        raise InputError(f"{path} raised {type(error).__name__} while it was loaded: {error}") from error
    return module


_CALL = re.compile(r"(?P<name>[^()]+?)\s*\((?P<args>.*)\)")


def called(kind: str, text: str) -> tuple[str, dict[str, str]]:
    """Split a name with settings; their values stay text, as each setting's type says what it becomes.

    Raises:
        InputError: for something in the parentheses that is not ``key=value``.

    >>> called("codec", "int8(bucket=256)"), called("codec", "fp32")
    (('int8', {'bucket': '256'}), ('fp32', {}))
    """
    call = _CALL.fullmatch(text) if isinstance(text, str) else None
    if call is None:
        return text, {}
    settings: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in call["args"].split(","))):
        key, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"got {kind} {text!r}; expected settings as name(key=value, key=value)")
        settings[key.strip()] = value.strip()
    return call["name"], settings


def absolute(name: str) -> str:
    """Return an import path that holds in every folder: ``file.py:Name`` with the whole path of the file.

    >>> absolute("fp32"), absolute("package.module:Name")
    ('fp32', 'package.module:Name')
    """
    where, colon, attribute = name.rpartition(":")
    return f"{Path(where).resolve()}:{attribute}" if colon and where.endswith(".py") else name


class Registry(Generic[T]):
    """Classes or values of one kind, by name, in the order they were registered."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._things: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that files a thing under ``name``."""

        def add(thing: T) -> T:
            if name in self._things:
                raise AssertionError(f"two {self.kind}s are called {name!r}")
            self._things[name] = thing
            return thing

        return add

    def names(self) -> list[str]:
        return list(self._things)

    def items(self) -> Iterator[tuple[str, T]]:
        return iter(self._things.items())

    def get(self, name: str) -> T:
        """Look a name up; ``module:Name`` and ``file.py:Name`` are imported.

        Raises:
            InputError: for an unknown name (with the nearest known one) or an import path that leads nowhere.
        """
        if not isinstance(name, str):
            raise InputError(f"got {name!r} as {self.kind}; expected one of {', '.join(self._things)}")
        if name in self._things:
            return self._things[name]
        if ":" in name:
            return self._import(name)
        raise InputError(
            f"got unknown {self.kind} {name!r}; expected one of {', '.join(self._things)}.{suggest(name, self._things)}"
        )

    def _import(self, path: str) -> T:
        where, _, attribute = path.rpartition(":")
        try:
            module = load_file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
        except ImportError as error:
            extra = EXTRAS.get(where.partition(".")[0])
            remedy = (
                f"expected it installed: pip install 'simdist[{extra}]'"
                if extra
                else "expected module:Name or path/to/file.py:Name"
            )
            raise InputError(
                f"got {self.kind} {path!r}, but {where!r} cannot be imported: {error}; {remedy}"
            ) from error
        if not hasattr(module, attribute):
            known = [name for name in vars(module) if not name.startswith("_")]
            raise InputError(
                f"got {self.kind} {path!r}, but {where!r} has no {attribute!r}; expected a name that it defines."
                f"{suggest(attribute, known)}"
            )
        found: T = getattr(module, attribute)
        return found


def name_of(thing: type) -> str:
    """Return the import path that leads back to a user's class, as a scenario file stores it."""
    file = inspect.getsourcefile(thing)
    if thing.__module__.startswith("simdist_user_") and file:
        return f"{Path(file).resolve()}:{thing.__qualname__}"
    return f"{thing.__module__}:{thing.__qualname__}"


def summary_of(thing: Any) -> str:
    """Return the first line of a thing's docstring, for ``simdist list``."""
    lines = (inspect.getdoc(thing) or "").strip().splitlines()
    return lines[0] if lines else ""

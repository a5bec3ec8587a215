"""A user's functions in settings: given as functions, kept as import paths, so that saved scenarios find them again."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from simdist.errors import InputError
from simdist.registry import Registry


def path_of(thing: Any) -> str:
    """Return the import path of a function or class: ``package.module:name`` or ``/path/file.py:name``.

    Strings of that form are returned with the file's absolute path.

    Raises:
        InputError: for anything that cannot be found again by name (a lambda, an inner function, a partial).
    """
    if isinstance(thing, str):
        where, colon, name = thing.rpartition(":")
        if not (colon and where and name):
            raise InputError(
                f"got {thing!r}; expected an import path, such as 'model.py:make_model' or 'package.module:make_model'"
            )
        return f"{Path(where).resolve()}:{name}" if where.endswith(".py") else thing
    name, module = getattr(thing, "__qualname__", "<none>"), getattr(thing, "__module__", None)
    if not callable(thing) or module is None or "<" in name:
        raise InputError(
            f"got {thing!r}; expected a function or class defined at the top level of a file, "
            "so that the saved scenario can name it (no lambda, inner function or partial)"
        )
    if module == "__main__" or module.startswith("simdist_user_"):
        file = inspect.getsourcefile(thing)
        if file is None:
            raise InputError(f"got {thing!r}, which is in no file; expected a function defined in a Python file")
        return f"{Path(file).resolve()}:{name}"
    return f"{module}:{name}"


#: a setting that takes a callable or its import path, and holds the path
Reference = Annotated[str, BeforeValidator(path_of)]


def resolve(path: str, what: str) -> Callable[..., Any]:
    """Import what ``path`` leads to.

    Raises:
        InputError: when it leads nowhere or to something that cannot be called; ``what`` names the setting.
    """
    registry: Registry[Callable[..., Any]] = Registry(what)
    found = registry.get(path)
    if not callable(found):
        raise InputError(f"got {what} {path!r}, which is {found!r}; expected a function")
    return found


def call(path: str, what: str, *args: Any) -> Any:
    """Call what ``path`` leads to; an exception inside becomes an InputError that names the setting and the path."""
    function = resolve(path, what)
    try:
        return function(*args)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{what} {path!r} raised {type(error).__name__}: {error}") from error

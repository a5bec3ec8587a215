"""What travels to the nodes of a cluster: this package, the working directory, and the paths that lead into it.

Ray copies both to every node (its ``runtime_env``) and starts actors inside of the copy. A scenario names the user's
files by whole paths, which hold on the driver's machine only; an actor reads them from its own copy.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simdist.errors import InputError

PACKAGE = Path(__file__).parents[1]

#: stays behind, besides what .gitignore and .rayignore name: results, environments, caches
STAYS = ("/runs", ".git", ".venv", "venv", "__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis")

#: set by Ray for the driver of a submitted job
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"

#: a whole path, alone, as a corpus (``file:PATH``), or of a class in a file (``PATH.py:Name``, with settings or not)
_PATH = re.compile(r"(?P<before>(?:file:)?)(?P<path>/.*?)(?P<after>(?<=\.py):[A-Za-z_].*)?")


def runtime_env() -> dict[str, Any]:
    """Return the ``runtime_env`` of a driver that attaches to a cluster: what its job has not brought along by itself.

    Raises:
        InputError: when the working directory is gone.
    """
    given = json.loads(os.environ.get(_JOB) or "{}").get("runtime_env") or {}
    env: dict[str, Any] = {}
    if "py_modules" not in given:
        env["py_modules"] = [str(PACKAGE)]
    if "working_dir" not in given:
        env["working_dir"] = _working_directory()
    if env and "excludes" not in given:
        env["excludes"] = list(STAYS)
    return env


@dataclass(frozen=True)
class Luggage:
    """Plain settings on their way from the driver to an actor.

    Attributes:
        data: the settings, with the driver's paths.
        home: the driver's working directory.
        files: the whole paths in ``data`` at which the driver finds something.
    """

    data: Mapping[str, Any]
    home: str
    files: frozenset[str]

    @classmethod
    def packed(cls, data: Mapping[str, Any]) -> Luggage:
        """Pack settings, in the driver."""
        found: set[str] = set()

        def note(path: str) -> str:
            if os.path.exists(path):
                found.add(path)
            return path

        _with_paths(data, note)
        return cls(data, _working_directory(), frozenset(found))

    def unpacked(self) -> dict[str, Any]:
        """Return the settings with paths that lead to this node's copies, in an actor.

        Nothing changes where the working directory has not travelled: on an embedded Ray.

        Raises:
            InputError: for a file that this node does not have.
        """
        import ray

        context = ray.get_runtime_context()
        if "working_dir" not in context.runtime_env:
            return dict(self.data)
        return self.at(os.getcwd(), f"the Ray node {ray.util.get_node_ip_address()}")

    def at(self, copy: str, place: str) -> dict[str, Any]:
        """Return the settings for where a copy of the working directory is.

        Args:
            copy: its path.
            place: the machine's name, for messages.

        Raises:
            InputError: for a file that is neither in the copy nor at its own place.
        """
        unpacked: dict[str, Any] = _with_paths(self.data, lambda path: self._here(path, copy, place))
        return unpacked

    def _here(self, path: str, copy: str, place: str) -> str:
        inside = os.path.relpath(path, self.home)
        travelled = os.path.join(copy, inside)
        if not inside.startswith(os.pardir) and os.path.exists(travelled):
            return travelled
        if path in self.files and not os.path.exists(path):
            raise InputError(
                f"got {path!r}, which is not on {place}; expected a file below the working directory {self.home!r}, "
                f"which travels to every node (but for what .gitignore or .rayignore name, and {', '.join(STAYS)}), "
                f"or a path that all nodes share"
            )
        return path


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError as error:
        raise InputError(
            f"the working directory is gone ({error.strerror}); expected an existing one: go to another folder"
        ) from error


def _with_paths(value: Any, change: Callable[[str], str]) -> Any:
    """Return plain data with every whole path in it changed."""
    if isinstance(value, Mapping):
        return {key: _with_paths(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_paths(item, change) for item in value]
    found = _PATH.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return value
    return f"{found['before']}{change(found['path'])}{found['after'] or ''}"

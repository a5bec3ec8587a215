"""From a path and ``--set KEY=VALUE`` texts to a checked scenario or sweep.

A path is a Python file with ``scenario()`` or ``sweep()``, a YAML file, or a run folder (its ``scenario.yaml``).

Overrides are dotted keys with YAML values, in any order. Some keys choose what a section is: ``workload.name``,
``optimizer.name``, ``schedule.name``, ``compression.replicas.name``, ``compression.shards.name``, ``network.topology``,
``engine.name``, ``compute.device``, ``compute.stragglers.name``. Setting one of them to something new starts that
section afresh, from the new choice's own defaults and the other overrides. Only keys that all choices share keep their
values, where these are not just the old choice's defaults (network: bandwidth, latency, collectives, mode; engine:
device, threads, chunk; compute: mfu, mbu, speeds, stragglers). An optimizer shares nothing: a learning rate means
something else under every rule.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from simdist.choosing import plain
from simdist.errors import InputError, SimdistError
from simdist.explaining import explain
from simdist.network.topology import Topology
from simdist.registry import load_file
from simdist.scenario import KINDS, Scenario, Sweep
from simdist.yaml_text import parse

__all__ = ["checked", "explain", "load", "load_scenario", "override", "parse_over", "parse_set"]

M = TypeVar("M", bound=BaseModel)

#: section -> the key that chooses what it is, and the keys that every choice shares
CHOICES: dict[str, tuple[str, frozenset[str]]] = {
    "workload": ("name", frozenset()),
    "optimizer": ("name", frozenset()),
    "schedule": ("name", frozenset()),
    "compression.replicas": ("name", frozenset()),
    "compression.shards": ("name", frozenset()),
    "network": ("topology", frozenset(Topology.model_fields) - {"topology"}),
    "overlap": ("policy", frozenset()),
    "engine": ("name", frozenset({"device", "threads", "chunk"})),
    # a profile is measured on a device
    "compute": ("device", frozenset({"mfu", "mbu", "speeds", "stragglers"})),
    "compute.stragglers": ("name", frozenset()),
}


def checked(model: type[M], data: Any, where: str = "") -> M:
    """Validate plain data; ``where`` is put in front of the message.

    Raises:
        InputError: with one line per problem.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise InputError(_prefixed(where, explain(error))) from None


def _prefixed(where: str, message: str) -> str:
    if not where:
        return message
    return f"{where}: {message}" if "\n" not in message else f"{where}:\n{message}"


def load(
    path: str, overrides: Sequence[str] = (), prefer: Literal["scenario", "sweep"] = "scenario"
) -> Scenario | Sweep:
    """Read a scenario or sweep and put overrides in (into a sweep's base).

    Args:
        path: a Python file, a YAML file, or a run or sweep folder.
        overrides: ``KEY=VALUE`` texts.
        prefer: which function of a Python file to call when it has both.

    Raises:
        InputError: for whatever is wrong with the file or the overrides.
    """
    found = _read(path, prefer)
    changes = parse_set(overrides)
    if isinstance(found, Sweep):
        return found.model_copy(update={"base": override(found.base, changes)})
    return override(found, changes)


def load_scenario(path: str, overrides: Sequence[str] = ()) -> Scenario:
    """Read what must be a single scenario (see :func:`load`)."""
    found = load(path, overrides)
    if isinstance(found, Sweep):
        raise InputError(f"got {path!r}, which describes a sweep; expected a scenario: write 'simdist sweep {path}'")
    return found


def _read(path: str, prefer: str) -> Scenario | Sweep:
    file = Path(path)
    if file.is_dir():
        inside = [file / name for name in ("scenario.yaml", "sweep.yaml") if (file / name).is_file()]
        if not inside:
            raise InputError(f"got the folder {path!r} without scenario.yaml; expected a run folder or a scenario file")
        file = inside[0]
    if not file.exists():
        raise InputError(
            f"got the scenario {path!r}, which does not exist; expected a .py or .yaml file or a run folder"
        )
    if file.suffix == ".py":
        return _from_python(file, prefer)
    if file.suffix in (".yaml", ".yml"):
        return _from_yaml(file)
    raise InputError(f"got the scenario {path!r}; expected a Python file (.py) or a YAML file (.yaml)")


def _from_yaml(file: Path) -> Scenario | Sweep:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"got the scenario {str(file)!r}, which cannot be read ({error}); expected a YAML text"
        ) from None
    data = parse(text, str(file))
    if not isinstance(data, dict):
        raise InputError(f"{file}: got {data!r}; expected the sections of a scenario, such as 'optimizer:'")
    if "base" in data:
        return checked(Sweep, data, str(file))
    return checked(Scenario, data, str(file))


def _from_python(file: Path, prefer: str) -> Scenario | Sweep:
    try:
        module = load_file(file)
    except InputError as error:
        cause = error.__cause__
        if cause is None:
            raise
        raise InputError(_blame(file, cause)) from cause
    names = [prefer, "sweep" if prefer == "scenario" else "scenario"]
    function = next((f for name in names if callable(f := getattr(module, name, None))), None)
    if function is None:
        raise InputError(f"{file}: got neither scenario() nor sweep(); expected a function that returns a Scenario")
    try:
        found = function()
    except Exception as error:  # whatever a user's function raises
        raise InputError(_blame(file, error)) from error
    if not isinstance(found, (Scenario, Sweep)):
        name = function.__name__
        raise InputError(
            f"got {type(found).__name__} from {name}() of {str(file)!r}; expected a simdist.Scenario or Sweep"
        )
    return found


def _blame(file: Path, error: BaseException) -> str:
    """Say where a scenario file raised, and what: without a traceback."""
    if isinstance(error, SyntaxError):
        return f"{file}, line {error.lineno}: got a syntax error ({error.msg}); expected valid Python"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame.lineno for frame in frames if os.path.abspath(frame.filename) == os.path.abspath(file)]
    where = f"{file}, line {own[-1]}" if own else str(file)
    if isinstance(error, ValidationError):
        return _prefixed(where, explain(error))
    if isinstance(error, SimdistError):
        return _prefixed(where, str(error))
    return f"{where}: got {type(error).__name__} ({error}) from the scenario file; expected it to return a Scenario"


def parse_set(texts: Iterable[str]) -> dict[str, Any]:
    """Parse ``KEY=VALUE`` texts; of several with the same key the last one counts.

    >>> parse_set(["optimizer.lr=1e-3", "network.bandwidth=100Mbit/s"])
    {'optimizer.lr': 0.001, 'network.bandwidth': '100Mbit/s'}
    """
    changes = {}
    for text in texts:
        key, value = _split(text, "--set")
        changes[key] = parse(value, f"--set {text}")
    return changes


def parse_over(texts: Iterable[str]) -> dict[str, list[Any]]:
    """Parse ``KEY=V1,V2,...`` texts.

    >>> parse_over(["optimizer.lr=1e-3,0.01", "network.bandwidth=10Mbit/s,1Gbit/s"])
    {'optimizer.lr': [0.001, 0.01], 'network.bandwidth': ['10Mbit/s', '1Gbit/s']}
    """
    over: dict[str, list[Any]] = {}
    for text in texts:
        key, values = _split(text, "--over")
        if key in over:
            raise InputError(f"got --over {key} twice; expected all its values in one: --over {key}=V1,V2,V3")
        over[key] = parse(f"[{values}]", f"--over {text}")
        if not over[key]:
            raise InputError(f"got --over {text!r} without values; expected KEY=V1,V2,...")
    return over


def _split(text: str, option: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")):
        example = "optimizer.lr=0.01" if option == "--set" else "optimizer.lr=0.01,0.02"
        raise InputError(f"got {option} {text!r}; expected KEY=VALUE with a dotted key, such as {option} {example}")
    return key, value.strip()


def override(scenario: Scenario, changes: Mapping[str, Any]) -> Scenario:
    """Return the scenario with dotted keys set to new values (see the head of this file).

    Raises:
        InputError: for a key that is not known, or a value that does not fit.
    """
    if not changes:
        return scenario
    data: dict[str, Any] = {key: getattr(scenario, key) for key in type(scenario).model_fields}
    changes = {_full(key, value): value for key, value in changes.items()}
    for section in {key.split(".", 1)[0] for key in changes if "." in key}:
        # untouched sections stay the objects they are
        if isinstance(data.get(section), BaseModel):
            data[section] = plain(data[section], KINDS)
    # first what a section is, then its keys: so the order of the arguments does not matter
    for section, (choice, shared) in CHOICES.items():
        key, (*outer, last) = f"{section}.{choice}", section.split(".")
        if key not in changes:
            continue
        inside: Any = data
        old: Any = scenario
        for part in outer:
            inside, old = inside[part], getattr(old, part)
        if not isinstance(inside.get(last), dict):
            inside[last] = {}
        elif changes[key] != inside[last].get(choice):
            was = getattr(old, last)
            inside[last] = {k: inside[last][k] for k in shared if getattr(was, k) != _default(was, k)}
    for key in sorted(changes, key=lambda key: key.count(".")):
        _put(data, key.split("."), changes[key], key)
    return checked(Scenario, data)


def _default(settings: BaseModel, key: str) -> Any:
    return type(settings).model_fields[key].get_default(call_default_factory=True)


def _full(key: str, value: Any) -> str:
    """Read ``optimizer=muon`` as ``optimizer.name=muon``."""
    return f"{key}.{CHOICES[key][0]}" if key in CHOICES and isinstance(value, str) else key


def _put(data: dict[str, Any], path: list[str], value: Any, key: str) -> None:
    *outer, last = path
    inner: Any = data
    for i, part in enumerate(outer):
        if inner.get(part) is None:  # a section that is off until one of its keys is set
            inner[part] = {}
        inner = inner[part]
        if not isinstance(inner, dict):
            section = ".".join(path[: i + 1])
            raise InputError(f"{key}: got a key inside of {section!r}, which is {inner!r}; expected {section}=VALUE")
    # workers are counted by whole numbers: compute.speeds.3
    inner[int(last) if last.isdigit() else last] = value

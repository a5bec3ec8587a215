"""Measured seconds of computing, from a file: they stand in for the roofline where they are given.

A profile is a YAML or JSON file of what one worker computes in one step. What it does not say is left to the roofline::

    forward: {root: 0.8ms, block0: 2.1ms}   # unit by unit, or in all: forward: 5ms
    backward: 9.7ms
    optimizer: 1.5ms                        # everything that is neither forward nor backward

Seconds of a whole pass are shared among the units in proportion to their roofline times.
``analysis/fidelity/measure_profile.py`` writes such a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simdist.errors import InputError, suggest
from simdist.execution.compute_model import OPTIMIZER, PASSES, Profile, check_units
from simdist.units import parse_time
from simdist.yaml_text import parse

_EXPECTED = "expected seconds under forward, backward or optimizer"


@dataclass(frozen=True)
class ProfileFile:
    """A profile and the file that it is from."""

    path: str
    seconds: Profile

    def check_units(self, units: Iterable[str]) -> None:
        """Raise InputError when the profile names a unit that is none of ``units``."""
        check_units(self.seconds, units, self.path)


def read_profile(path: str) -> ProfileFile:
    """Read a profile.

    Raises:
        InputError: for a file that cannot be read, another key, no entry, or a time that is negative or no number; with
            file and key.
    """
    try:
        data = parse(Path(path).read_text(encoding="utf-8"), path)  # YAML contains JSON
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"got compute.profile {path!r}, which cannot be read ({error}); expected a YAML or JSON file"
        ) from error
    if not isinstance(data, Mapping) or not data:
        raise InputError(f"{path}: got {data!r}; {_EXPECTED}")
    known = (*PASSES, OPTIMIZER)
    seconds: dict[tuple[str, str | None], float] = {}
    for purpose, value in data.items():
        if purpose not in known:
            raise InputError(f"{path}, {purpose}: got an unknown key; {_EXPECTED}.{suggest(str(purpose), known)}")
        if purpose in PASSES and isinstance(value, Mapping):
            if not value:
                raise InputError(f"{path}, {purpose}: got no units; expected seconds, or units with seconds each")
            for unit, each in value.items():
                seconds[purpose, str(unit)] = _seconds(each, f"{path}, {purpose}.{unit}")
        else:
            seconds[purpose, None] = _seconds(value, f"{path}, {purpose}")
    return ProfileFile(path, seconds)


def _seconds(value: Any, where: str) -> float:
    try:
        found = parse_time(value)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
    if found < 0:
        raise InputError(f"{where}: got {value!r}; expected zero or more seconds")
    return found

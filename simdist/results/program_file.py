"""``program.json``: what a lock-step run asked for, step by step, so that it can be priced again without training.

Equal steps are stored once: ``structures`` lists the distinct ones, ``steps`` names one per step.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from simdist.communication.trace import CollectiveOp, ComputeOp, SleepOp, StepOps
from simdist.errors import InputError

_KINDS: dict[str, type[CollectiveOp] | type[ComputeOp] | type[SleepOp]] = {
    "collective": CollectiveOp,
    "compute": ComputeOp,
    "sleep": SleepOp,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


class ProgramFile:
    """The recorded steps of a run, in order."""

    def __init__(self) -> None:
        self._numbers: dict[StepOps, int] = {}
        self.steps: list[int] = []

    def add(self, ops: StepOps) -> None:
        self.steps.append(self._numbers.setdefault(ops, len(self._numbers)))

    def ops(self) -> list[StepOps]:
        """Return the descriptors of every step."""
        structures = list(self._numbers)
        return [structures[number] for number in self.steps]

    def write(self, path: Path) -> None:
        structures = [
            [[{"kind": _NAMES[type(op)], **asdict(op)} for op in wave] for wave in ops]  # type: ignore[index]
            for ops in self._numbers
        ]
        path.write_text(json.dumps({"structures": structures, "steps": self.steps}), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> ProgramFile:
        """Read a recorded program.

        Raises:
            InputError: when the file is missing or damaged.
        """
        if not path.is_file():
            raise InputError(
                f"got {str(path.parent)!r}, which has no {path.name}; expected the folder of a finished lock-step run "
                "(irregular programs cannot be re-timed: their values depend on time)"
            )
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            structures = [tuple(tuple(_op(op) for op in wave) for wave in waves) for waves in data["structures"]]
            found = cls()
            for number in data["steps"]:
                found.add(structures[number])
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise InputError(f"{path} is damaged ({type(error).__name__}: {error}); run the scenario again") from error
        return found


def _op(fields: dict[str, Any]) -> CollectiveOp | ComputeOp | SleepOp:
    fields = dict(fields)
    return _KINDS[fields.pop("kind")](**fields)

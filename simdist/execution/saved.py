"""What a block of workers is between two steps, as bytes: the part of a checkpoint that an engine writes and reads.

Random streams are keyed by (seed, purpose, worker, step), so that the number of the step is all their state. What else
lives on from step to step are the programs' states, which :mod:`simdist.program.state` turns into plain data. Bytes are
read as weights only: whatever a file holds, reading it runs no code.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import torch

from simdist.errors import InputError
from simdist.program.state import Plain

#: one state per worker, or one for a stacked cohort, whose tensors carry leading worker axes
Form = Literal["workers", "cohort"]


class Part(NamedTuple):
    """A block as it travels: which workers' states the bytes of a :class:`SavedBlock` hold."""

    workers: range
    data: bytes


@dataclass(frozen=True)
class SavedBlock:
    """The states of contiguous workers after a step.

    Attributes:
        workers: which they are.
        form: what ``states`` holds an item for: each worker, or the cohort as a whole.
        states: as plain data.
    """

    workers: range
    form: Form
    states: list[Plain]

    def to_bytes(self) -> bytes:
        """Return the block as a file of ``torch.save``."""
        file = io.BytesIO()
        first, end = self.workers.start, self.workers.stop
        torch.save({"workers": [first, end], "form": self.form, "states": self.states}, file)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> SavedBlock:
        """Read a block; tensors are placed on the CPU.

        Raises:
            InputError: for anything that :meth:`to_bytes` has not written.
        """
        try:
            found: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            first, end = found["workers"]
            return cls(range(first, end), cast(Form, found["form"]), list(found["states"]))
        except (RuntimeError, ValueError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
            raise InputError(f"got a block of workers that cannot be read ({type(error).__name__}: {error})") from error


def dealt_out(blocks: Sequence[bytes], workers: range, form: Form) -> list[Plain]:
    """Return the saved states for the workers of one block.

    States of single workers may have been saved by other blocks than those that go on with them. A cohort's may not.

    Raises:
        InputError: when the states were saved in another form, or some worker's is missing.
    """
    saved = [SavedBlock.from_bytes(data) for data in blocks]
    other = next((block for block in saved if block.form != form), None)
    if other is not None:
        written, here = _engines(other.form), _engines(form)
        raise InputError(f"the checkpoint was written by {written}; expected the same to go on with it, got {here}")
    if form == "cohort":
        same = [block for block in saved if block.workers == workers]
        if len(same) != 1:
            known = ", ".join(f"{block.workers[0]} to {block.workers[-1]}" for block in saved)
            raise InputError(
                f"the checkpoint holds stacked cohorts of the workers {known}; got a cohort of the workers "
                f"{workers[0]} to {workers[-1]}, expected the same number of actors as when it was written"
            )
        return same[0].states
    states = {worker: state for block in saved for worker, state in zip(block.workers, block.states, strict=True)}
    missing = [worker for worker in workers if worker not in states]
    if missing:
        raise InputError(f"the checkpoint lacks worker {missing[0]} and {len(missing) - 1} more: it belongs elsewhere")
    return [states[worker] for worker in workers]


def _engines(form: Form) -> str:
    return "stacked cohorts (engine.name or engine.block 'stacked')" if form == "cohort" else "unstacked workers"

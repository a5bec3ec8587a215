"""``checkpoints/step-00000040/``: all that a lock-step run needs to go on after that step, whole or not there.

========================= ==============================================================================
``manifest.json``         version of this format, step, whose run it is, the clock, size and sha256 of each file
``block-0.pt``, ...       states of some workers (:mod:`simdist.execution.saved`); opaque here
``steps.parquet``         the rows so far
``diagnostics.parquet``   the rows so far
``program.json``          the steps so far, which give ledger, times and trace again
========================= ==============================================================================

A checkpoint is written to a hidden folder, brought to the disk, and renamed. So a run that is killed at any moment
leaves whole checkpoints; should the disk lose bytes later on, sizes and hashes tell.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simdist.errors import InputError
from simdist.results.disk import sync, write_whole
from simdist.results.program_file import ProgramFile
from simdist.results.recorder import read_rows, write_diagnostics, write_steps

#: what this code writes and reads
FORMAT = 1
FOLDER = "checkpoints"
_MANIFEST = "manifest.json"
_BLOCK = "block-{}.pt"
_WRITING = ".writing"


@dataclass(frozen=True)
class Recorded:
    """What a run has recorded up to a step.

    Attributes:
        steps, diagnostics: rows of the run folder's tables.
        program: what was asked for in each step.
    """

    steps: list[dict[str, Any]]
    diagnostics: list[dict[str, Any]]
    program: ProgramFile


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files have been read and found to be those that were written.

    Attributes:
        step: after which it was written.
        clock: state of the virtual clock.
        wall_seconds: how long the run had taken.
        blocks: workers (first, end) and bytes of every block.
    """

    folder: Path
    step: int
    clock: dict[str, Any]
    wall_seconds: float
    blocks: list[tuple[range, bytes]]
    recorded: Recorded


class Checkpoints:
    """The checkpoints of one run.

    Args:
        run: the run folder.
        identity: hash of all that decides the run's values; a checkpoint with another one is foreign.
        keep: how many of the latest to keep.
    """

    def __init__(self, run: Path, identity: str, keep: int) -> None:
        self.folder = run / FOLDER
        self._identity = identity
        self._keep = keep

    def write(
        self,
        step: int,
        clock: dict[str, Any],
        wall_seconds: float,
        blocks: Iterator[tuple[range, bytes]],
        recorded: Recorded,
    ) -> None:
        """Write a checkpoint, and then delete the oldest ones.

        Args:
            blocks: taken one after the other, so that only one need be in memory.

        Raises:
            OSError: when it cannot be written, for want of space say; earlier ones are untouched.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for stale in self.folder.glob(f"*{_WRITING}"):
            shutil.rmtree(stale)
        target = self.folder / f"step-{step:08d}"
        draft = self.folder / f".{target.name}{_WRITING}"
        draft.mkdir()
        try:
            workers = []
            for number, (block, data) in enumerate(blocks):
                write_whole(draft / _BLOCK.format(number), data)
                workers.append([block.start, block.stop])
            write_steps(draft / "steps.parquet", recorded.steps)
            write_diagnostics(draft / "diagnostics.parquet", recorded.diagnostics)
            recorded.program.write(draft / "program.json")
            files = {path.name: _describe(path) for path in sorted(draft.iterdir())}
            manifest = {
                "format": FORMAT,
                "step": step,
                "identity": self._identity,
                "clock": clock,
                "wall_seconds": wall_seconds,
                "workers": workers,
                "files": files,
            }
            write_whole(draft / _MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
            for name in files:
                sync(draft / name)
            sync(draft)
            if target.exists():
                shutil.rmtree(target)  # of a try that was rolled back to an earlier step
            os.replace(draft, target)
            sync(self.folder)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        for old in self._found()[: -self._keep]:
            shutil.rmtree(old, ignore_errors=True)

    def latest(self, tell: Callable[[str], None]) -> Checkpoint | None:
        """Return the latest good checkpoint, or None.

        Args:
            tell: hears why a later one is refused.
        """
        for folder in reversed(self._found()):
            try:
                return self._read(folder)
            except (InputError, OSError) as error:
                tell(f"checkpoint {folder} is refused: {error}")
        return None

    def _found(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if path.is_dir())

    def _read(self, folder: Path) -> Checkpoint:
        manifest = _manifest(folder)
        if manifest["identity"] != self._identity:
            raise InputError("it was written by another scenario or with other data; expected this run's own")
        for name, (size, digest) in manifest["files"].items():
            path = folder / name
            got = _describe(path) if path.is_file() else None
            if got != [size, digest]:
                what = "is missing" if got is None else f"has {got[0]} bytes with another hash than was written"
                raise InputError(f"it is torn: {name} {what}; expected {size} bytes")
        recorded = Recorded(
            read_rows(folder / "steps.parquet"),
            read_rows(folder / "diagnostics.parquet"),
            ProgramFile.read(folder / "program.json"),
        )
        blocks = [
            (range(first, end), (folder / _BLOCK.format(number)).read_bytes())
            for number, (first, end) in enumerate(manifest["workers"])
        ]
        return Checkpoint(folder, manifest["step"], manifest["clock"], manifest["wall_seconds"], blocks, recorded)


def _manifest(folder: Path) -> dict[str, Any]:
    """Read a manifest.

    Raises:
        InputError: when it is missing, damaged, or of a format that this version does not know.
    """
    path = folder / _MANIFEST
    if not path.is_file():
        raise InputError(f"it is torn: {_MANIFEST} is missing")
    try:
        manifest: Any = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise InputError(
                f"got format {manifest['format']!r}, expected {FORMAT}: another version of simdist wrote it; "
                "resume with the version in environment.json"
            )
        kinds = {"step": int, "identity": str, "clock": dict, "wall_seconds": float, "workers": list, "files": dict}
        for key, kind in kinds.items():
            if not isinstance(manifest[key], kind):
                raise TypeError(f"{key} is {type(manifest[key]).__name__}, expected {kind.__name__}")
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"it is torn: {_MANIFEST} is damaged ({type(error).__name__}: {error})") from error
    found: dict[str, Any] = manifest
    return found


def _describe(path: Path) -> list[int | str]:
    """Return a file's size and sha256."""
    data = path.read_bytes()
    return [len(data), hashlib.sha256(data).hexdigest()]

"""Output folders: which are ours, and which must not be touched."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from simdist.errors import InputError

#: files that make a folder ours
MARKS = {"run": ("scenario.yaml", "environment.json"), "sweep": ("sweep.yaml",)}


def kind_of(path: Path) -> Literal["run", "sweep"] | None:
    """Return what a folder holds: a run, a sweep, or nothing of ours."""
    if all((path / name).is_file() for name in MARKS["run"]):
        return "run"
    if all((path / name).is_file() for name in MARKS["sweep"]):
        return "sweep"
    return None


def claim_folder(path: Path, kind: Literal["run", "sweep"]) -> Path:
    """Make ``path`` an output folder for a run or a sweep and return it. Nothing is ever overwritten.

    A missing or empty folder is taken; a sweep also goes on in a folder where a sweep began.

    Raises:
        InputError: when the path holds something else, or a run.
    """
    advice = "choose another --out, or delete it"
    try:
        if not path.exists():
            path.mkdir(parents=True)
            return path
        if not path.is_dir():
            raise InputError(f"--out: got {str(path)!r}, which is a file; expected a folder: {advice}")
        if not any(path.iterdir()):
            return path
    except OSError as error:
        message = f"--out: got {str(path)!r}, which cannot be used ({error}); expected a writable folder"
        raise InputError(message) from None
    found = kind_of(path)
    if found is None:
        raise InputError(
            f"--out: got {str(path)!r}, which exists and is not a folder that simdist made; "
            f"expected a new or empty folder: choose another --out"
        )
    if found == "run" or kind == "run":
        raise InputError(f"--out: got {str(path)!r}, which already holds a {found}; expected a new folder: {advice}")
    return path


@contextmanager
def occupied(run: Path) -> Iterator[None]:
    """Hold a run folder while its run goes on. The hold ends with the process, however that ends.

    Raises:
        InputError: when another process holds it.
    """
    with (run / "scenario.yaml").open("rb") as file:  # written once, so that all processes lock the same file
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"got the run folder {str(run)!r}, in which another process is at work; expected one at a time: wait "
                "for it, or end it"
            ) from None
        except OSError:
            # a file system without locks, such as some network ones: nobody can be kept out there
            pass
        yield

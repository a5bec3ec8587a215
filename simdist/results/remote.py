"""Folders at a URL: ``s3://bucket/run``, ``gs://``, ``abfs://``, ``file:///shared/run``: whatever fsspec knows.

:func:`push` brings a local folder there, :func:`pull` fetches it. Only what has changed travels: a note at the URL says
which file has which hash. ``summary.json`` travels last, so that where it is, the rest is too.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from simdist.errors import InputError, RunError, SimdistError, suggest

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

#: at the URL: file -> its size and sha256
NOTE = ".simdist-files.json"
SUMMARY = "summary.json"
#: what a checkpoint's reader looks for first
_LATE = ("manifest.json", SUMMARY)
#: bytes that are read at a time
_BLOCK = 1 << 20
#: protocols that are named where an unknown one was given
_USUAL = ("s3", "gs", "abfs", "file", "hdfs", "sftp", "memory")

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(::|://)")


def is_url(text: str) -> bool:
    """Tell a URL from a path of this machine.

    >>> is_url("s3://bucket/run"), is_url("simplecache::s3://bucket/run"), is_url("runs/mine"), is_url("a.py:Name")
    (True, True, False, False)
    """
    return _URL.match(text) is not None


def joined(url: str, name: str) -> str:
    """Return the URL of something in a folder.

    >>> joined("s3://bucket/sweep/", "seed=0")
    's3://bucket/sweep/seed=0'
    """
    return f"{url}{name}" if url.endswith("/") else f"{url}/{name}"


@dataclass(frozen=True)
class Place:
    """A folder at a URL.

    Attributes:
        root: the path that ``store`` knows it by.
    """

    url: str
    store: AbstractFileSystem
    root: str

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def files(self) -> dict[str, int | None]:
        """Return the files below, by path relative to here, with their sizes where the store knows them."""
        self.store.invalidate_cache()
        if not self.store.exists(self.root):
            return {}
        found = self.store.find(self.root, detail=True)
        start = len(self.root) + 1
        return {path[start:]: entry.get("size") for path, entry in found.items() if len(path) > start}

    def note(self) -> dict[str, list[int | str]]:
        """Return size and sha256 of every file that was pushed; empty where nothing was, or the note is damaged."""
        try:
            found = json.loads(self.store.cat_file(self.path(NOTE)))
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def write_note(self, note: Mapping[str, list[int | str]]) -> None:
        self.store.pipe_file(self.path(NOTE), (json.dumps(note, indent=1) + "\n").encode())


def place(url: str) -> Place:
    """Return the folder at a URL; nothing is asked for yet, but for what opening the store itself needs.

    Raises:
        InputError: for an unknown protocol, or one whose package is missing.
    """
    from fsspec.core import url_to_fs

    protocol = re.split("::|://", url, maxsplit=1)[0]
    # other stores have no folders that could be missing
    options = {"auto_mkdir": True} if protocol in ("file", "local") else {}
    try:
        store, root = url_to_fs(url, **options)
    except ImportError as error:
        raise InputError(
            f"got the URL {url!r}, which needs a package that is not installed ({_first_line(error)}); expected it "
            "beside simdist: pip install s3fs for s3://, gcsfs for gs://, adlfs for abfs://"
        ) from error
    except ValueError as error:
        from fsspec.registry import known_implementations

        known = ", ".join(f"{name}://" for name in _USUAL)
        raise InputError(
            f"got the URL {url!r} ({_first_line(error)}); expected a protocol that fsspec knows, such as {known}."
            f"{suggest(protocol, known_implementations)}"
        ) from error
    except Exception as error:  # whatever opening a connection raises, which each store does in its own way
        raise InputError(
            f"got the URL {url!r}, which cannot be opened ({_first_line(error)}); expected a store that answers"
        ) from error
    root = root.rstrip("/")
    if not root:
        raise InputError(
            f"got the URL {url!r}, which names no folder; expected one, such as {joined(url, 'results')!r}"
        )
    return Place(url, store, root)


@contextmanager
def _at(url: str, doing: str, kind: type[SimdistError]) -> Iterator[None]:
    """Turn what a store raises into one message."""
    try:
        yield
    except SimdistError:
        raise
    except Exception as error:  # botocore, gcsfs, ... each have their own base classes
        what = "no permission" if isinstance(error, PermissionError) else type(error).__name__
        raise kind(
            f"{url!r} could not be {doing} ({what}: {_first_line(error)}); "
            "expected a place that may be read and written with the credentials of this machine"
        ) from error


def push(folder: Path, url: str, *, mirror: bool = True) -> list[str]:
    """Make the folder at a URL what the local one is, and return the files that travelled.

    Hidden files (drafts) stay here.

    Args:
        mirror: whether files that an earlier push brought and that are gone here are removed there.

    Raises:
        InputError: for a URL that cannot be used.
        RunError: when something could not be written; another push goes on from there.
    """
    there = place(url)
    with _at(url, "written", RunError):
        before = there.note()
        sizes = there.files() if before else {}
        now = {name: _describe(folder / name) for name in local_files(folder)}

        def is_there(name: str) -> bool:
            return before.get(name) == now[name] and name in sizes and sizes[name] in (None, now[name][0])

        changed = sorted((name for name in now if not is_there(name)), key=lambda name: (_lateness(name), name))
        gone = [name for name in before if name not in now and name in sizes] if mirror else []
        if not changed and not gone:
            return []
        if SUMMARY in sizes and SUMMARY in changed:
            # a summary stands for the files around it: it goes before they do
            there.store.rm_file(there.path(SUMMARY))
        for name in gone:
            there.store.rm_file(there.path(name))
        for name in changed:
            there.store.put_file(str(folder / name), there.path(name))
        there.write_note(now if mirror else {**before, **now})
    return changed


def push_file(file: Path, url: str) -> None:
    """Bring one file to a URL.

    Raises:
        InputError: for a URL that cannot be used.
        RunError: when it could not be written.
    """
    there = place(url)
    with _at(url, "written", RunError):
        there.store.put_file(str(file), there.root)


def pull(url: str, folder: Path, wanted: Callable[[str], bool] = lambda name: True) -> list[str]:
    """Fetch the folder at a URL into a local one, and return the files that travelled.

    Args:
        folder: made where it is missing; files that are the same already stay as they are.
        wanted: says of a file, by its path relative to the folder, whether it is needed.

    Raises:
        InputError: for a URL that cannot be used or read, or with nothing there.
    """
    there = place(url)
    with _at(url, "read", InputError):
        names = [name for name in there.files() if name.rpartition("/")[2] != NOTE]
        if not names:
            raise InputError(f"got the URL {url!r}, where there is nothing; expected a run folder or a sweep's")
        note = there.note()
        fetched = []
        for name in sorted(filter(wanted, names)):
            if ".." in name.split("/"):
                raise InputError(f"got the URL {url!r} with a file {name!r}; expected files below it only")
            target = folder / name
            if target.is_file() and note.get(name) == _describe(target):
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            draft = target.with_name(f".{target.name}.fetching")
            there.store.get_file(there.path(name), str(draft))
            draft.replace(target)
            fetched.append(name)
    return fetched


def claim_url(url: str, kind: Literal["run", "sweep"]) -> bool:
    """Make sure, before anything is run, that results can land at a URL. Nothing there is ever overwritten.

    Returns:
        whether a sweep began there that may go on.

    Raises:
        InputError: when it cannot be written, or holds something; a sweep goes on where a sweep began.
    """
    there = place(url)
    with _at(url, "used", InputError):
        held = there.files()
        begun = kind == "sweep" and "sweep.yaml" in held
        if held and set(held) != {NOTE} and not begun:
            what = next(
                (found for found, mark in _MARKS.items() if mark in held), "something that simdist did not make"
            )
            raise InputError(
                f"--out: got {url!r}, which already holds {what}; expected a new or empty folder: choose another --out"
            )
        if not begun:
            there.write_note({})  # a run of hours shall not end at a place where it may not write
    return begun


_MARKS = {"a sweep": "sweep.yaml", "a run": "scenario.yaml"}


def local_files(folder: Path) -> list[str]:
    """Return the files below a folder, relative to it, without hidden ones and those in hidden folders."""
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts))


def _lateness(name: str) -> int:
    """Return 0 for most files; those that say that others are complete come after them."""
    base = name.rpartition("/")[2]
    return _LATE.index(base) + 1 if base in _LATE else 0


def _describe(path: Path) -> list[int | str]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return [size, digest.hexdigest()]


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__

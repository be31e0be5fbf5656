"""Writing files so that a reader sees either the old content or the new, never a part of it."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

try:
    import fcntl
except ImportError:  # Windows has no such locks: writers can collide, but a reader still never sees a part of a file
    fcntl = None  # type: ignore[assignment]

_STRAY = re.compile(r"\.(?P<target>.+)\.[a-z0-9_]{8}\.tmp")


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces a file: the new one is written beside it, flushed to disk, then renamed."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def remove_strays(directory: Path, names: set[str]) -> None:
    """Deletes the temporary files of killed writers of these file names. Call it under `locked`."""
    for path in directory.iterdir():
        match = _STRAY.fullmatch(path.name)
        if match and match["target"] in names:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keeps other writing processes out of a directory. The lock is on the directory, so no lock file is left."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0o077)  # the system tells the mask only to a process that sets one
    os.umask(mask)
    return mask


def _sync_directory(directory: Path) -> None:
    """Makes a renaming durable, which POSIX systems do with the directory rather than with the file."""
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Writing files so that a reader sees either the old content or the new, never a part of it."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no such locks: writers can collide, but a reader still never sees a part of a file
    fcntl = None  # type: ignore[assignment]

_TEMPORARY = re.compile(r"\.(?P<target>.+)\.[a-z0-9_]{8}\.tmp")


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces a file: the new one is written beside it, flushed to disk, then renamed."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    file = temporary.open("xb")
    try:
        with file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def remove_strays(directory: Path, names: set[str]) -> None:
    """Deletes the temporary files of killed writers of these file names. Call it under `locked`."""
    for path in directory.iterdir():
        match = _TEMPORARY.fullmatch(path.name)
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


def _sync_directory(directory: Path) -> None:
    """Makes a renaming durable, which POSIX systems do with the directory rather than with the file."""
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

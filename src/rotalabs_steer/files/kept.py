"""Two files that must belong together: a document names its data by SHA-256, and old data is kept until it does.

The document is the commit point. A writer gives the data that it is about to replace a second name made of its digest,
writes the new data, then the document. A reader that finds the data changed under it takes the kept one or reads again.
Killed at any moment, a writer leaves the old pair or the new one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from typing import TYPE_CHECKING, TypeVar

from rotalabs_steer.errors import FileFormatError
from rotalabs_steer.files.atomic import remove_strays, write_atomically
from rotalabs_steer.files.reading import read_bytes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_KEPT = re.compile(r"\.(?P<stem>.+)\.[0-9a-f]{64}(?P<suffix>\.[a-z]+)")
_ATTEMPTS = 50

_T = TypeVar("_T")


class ChangedMeanwhileError(Exception):
    """A writer was at work while we read."""


def digest(content: bytes | bytearray) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def keep(path: Path) -> None:
    """Gives data that is about to be replaced its second name. Links, pipes and what is not there yet are no data."""
    if path.is_symlink() or not path.is_file():
        return
    with contextlib.suppress(FileNotFoundError):
        with path.open("rb") as file:
            kept = _kept(path, hashlib.file_digest(file, "sha256").hexdigest())
        if not kept.exists():
            _link(path, kept)


def read_named(path: Path, sha256: object, limit: int) -> bytearray:
    """The content with this digest: the file's own or that of the copy a writer kept.

    Raises:
        FileNotFoundError: there is neither.
        ChangedMeanwhileError: the file's content is another one.
    """
    if not isinstance(sha256, str) or not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise FileFormatError(f"{path.with_suffix('')}.json names its tensor by {sha256!r:.80}, which is no SHA-256.")
    for candidate in (path, _kept(path, sha256)):
        with contextlib.suppress(FileNotFoundError):
            content = read_bytes(candidate, limit)
            if digest(content) == sha256:
                return content
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: copy it together with its .json file.")
    raise ChangedMeanwhileError(f"{path} is not the tensor that its metadata describes (SHA-256 differs).")


def retry(read: Callable[[], _T]) -> _T:
    """What `read` gives, tried again while a writer is at work.

    Raises:
        FileFormatError: it did not come to rest, so it was not a writer.
    """
    for _ in range(_ATTEMPTS):
        try:
            return read()
        except ChangedMeanwhileError as changed:
            last = changed
    raise FileFormatError(f"{last} The file was changed or damaged after it was saved.")


def clean(directory: Path, names: set[str]) -> None:
    """Removes kept data and what earlier killed writers left of these file names. Call it under `locked`."""
    for path in directory.iterdir():
        match = _KEPT.fullmatch(path.name)
        if match and match["stem"] + match["suffix"] in names:
            path.unlink(missing_ok=True)
    remove_strays(directory, names)


def _kept(path: Path, sha256: str) -> Path:
    return path.with_name(f".{path.stem}.{sha256}{path.suffix}")


def _link(path: Path, second: Path) -> None:
    try:
        os.link(path, second, follow_symlinks=False)
    except FileNotFoundError:
        raise
    except (OSError, NotImplementedError):  # a file system without hard links
        write_atomically(second, path.read_bytes())

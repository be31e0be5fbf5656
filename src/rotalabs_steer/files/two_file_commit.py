"""Two files that must stay in step: the JSON names its tensors by SHA-256, and old tensors stay until it is replaced.

The JSON file is the commit point. A writer hard-links the tensors that it is about to replace under a name made of
their digest, writes the new tensors, then the new JSON. A reader whose JSON names other tensors than it finds uses the
linked ones, or reads both files again. A writer that is killed at any moment leaves the old pair or the new one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from typing import TYPE_CHECKING, TypeVar

from rotalabs_steer.errors import FileFormatError
from rotalabs_steer.files.atomic import remove_strays, write_atomically
from rotalabs_steer.files.reading import MAX_TENSOR_BYTES, read_bytes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_OLD_DATA = re.compile(r"\.(?P<stem>.+)\.[0-9a-f]{64}(?P<suffix>\.[a-z]+)")
_ATTEMPTS = 50

_T = TypeVar("_T")


class ChangedMeanwhileError(Exception):
    """The tensor was replaced after the JSON that names it was read."""


def digest(content: bytes | bytearray) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def keep_old_data(path: Path) -> None:
    """Hard-links a file under a name made of its SHA-256, so that readers still find it after it is replaced.

    It does nothing for symbolic links, pipes and files that do not exist.
    """
    if path.is_symlink() or not path.is_file():
        return
    with contextlib.suppress(FileNotFoundError):
        with path.open("rb") as file:
            old = _old_data_path(path, hashlib.file_digest(file, "sha256").hexdigest())
        if old.exists():
            return
        try:
            os.link(path, old, follow_symlinks=False)
        except FileNotFoundError:
            raise
        except (OSError, NotImplementedError):  # a file system without hard links
            write_atomically(old, path.read_bytes())


def read_by_digest(path: Path, sha256: object) -> bytearray:
    """The content with this digest: that of the file, or of its predecessor that a writer has linked.

    Raises:
        FileNotFoundError: neither exists.
        ChangedMeanwhileError: the file has another digest.
        FileFormatError: `sha256` is not a digest.
    """
    if not isinstance(sha256, str) or not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise FileFormatError(
            f"The metadata gives {sha256!r:.80} as the SHA-256 of {path}; it must have 64 hexadecimal digits."
        )
    for candidate in (path, _old_data_path(path, sha256)):
        with contextlib.suppress(FileNotFoundError):
            content = read_bytes(candidate, MAX_TENSOR_BYTES)
            if digest(content) == sha256:
                return content
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: copy it together with its .json file.")
    raise ChangedMeanwhileError(f"{path} is not the tensor that its metadata describes (SHA-256 differs).")


def read_while_written(read: Callable[[], _T]) -> _T:
    """Calls `read`, again and again while a writer replaces the files, and returns its result.

    Raises:
        FileFormatError: the files still differ after many attempts, so they are damaged.
    """
    for _ in range(_ATTEMPTS):
        try:
            return read()
        except ChangedMeanwhileError as changed:
            last = changed
    raise FileFormatError(f"{last} The file was changed or damaged after it was saved.")


def remove_old_data(directory: Path, names: set[str]) -> None:
    """Removes the links of `keep_old_data` and the drafts of killed writers for these files. Call it under `locked`."""
    for path in directory.iterdir():
        match = _OLD_DATA.fullmatch(path.name)
        if match and match["stem"] + match["suffix"] in names:
            path.unlink(missing_ok=True)
    remove_strays(directory, names)


def _old_data_path(path: Path, sha256: str) -> Path:
    return path.with_name(f".{path.stem}.{sha256}{path.suffix}")

"""Folders in the user's cache that are made once, and are never seen half made."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def user_cache() -> Path:
    """The package's folder in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rotalabs-steer"


def make_once(folder: Path, marker: str, make: Callable[[Path], Path]) -> None:
    """Makes a folder beside its place and renames it. Of several processes that do so at once, the first one counts.

    Args:
        marker: a file that the finished folder has. A folder without it is replaced.
        make: fills an empty folder, and returns the folder to take, which is this one or one inside it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        made = make(temporary)
        made.chmod(0o755)
        if folder.exists() and not (folder / marker).exists():
            shutil.rmtree(folder)
        try:
            made.rename(folder)
        except OSError:
            if not (folder / marker).exists():  # else another process has made it meanwhile
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)

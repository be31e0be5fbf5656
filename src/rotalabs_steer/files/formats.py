"""The formats in which a vector set can be stored: which one a path holds, and its reader and writer."""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True)
class Format:
    """One way to store a set.

    Attributes:
        suffix: ending of its files; empty for a folder.
        commit_file: the file that makes a folder a set of this format; empty for a file.
    """

    name: str
    suffix: str
    read: Callable[[Path], StoredSet]
    write: Callable[[Path, StoredSet], None]
    commit_file: str = ""


FORMATS = {
    found.name: found
    for found in (
        Format("native", "", load_vector_set, save_vector_set, SET_FILE),
        Format("pretrained", "", load_pretrained_folder, save_pretrained_folder, CONFIG_FILE),
        Format("safetensors", ".safetensors", load_safetensors_set, save_safetensors_set),
    )
}


def read_set(path: Path) -> StoredSet:
    """The set at a path, in the format that its content shows, whatever its name.

    Raises:
        FileNotFoundError: there is nothing at the path.
        FileFormatError: it is not a vector set, or a damaged or unsafe one.
    """
    found = find_format(path)
    if found is None:
        raise FileFormatError(
            f"{path} is not a vector set of this package ({', '.join(FORMATS)}). Use import_vectors for other files."
        )
    return found.read(path)


def check_target(path: Path, name: str | None = None) -> Format:
    """The format in which a set is to be written: the named one, else that of the path's ending, else a native folder.

    Raises:
        OptionError: there is no such format.
        FileFormatError: there is a file where a folder is to be, or a folder where a file is to be.
    """
    if name is not None and name not in FORMATS:
        raise OptionError(f"Unknown format {name!r}. Use one of {', '.join(FORMATS)}.")
    if name is None and path.suffix == ".gguf":
        raise OptionError(
            f"{path}: a GGUF file is not a vector set but what llama.cpp applies. Write it with "
            "`rotalabs-steer export` or rotalabs_steer.engines.control_vectors.export_control_vector."
        )
    by_ending = next((found for found in FORMATS.values() if found.suffix and path.suffix == found.suffix), None)
    chosen = FORMATS[name] if name is not None else by_ending or FORMATS["native"]
    if not chosen.suffix and path.is_file():
        raise FileFormatError(f"{path} is a file; a {chosen.name} set is a folder. Name another path, or remove it.")
    if chosen.suffix and path.is_dir():
        raise FileFormatError(f"{path} is a folder; a {chosen.name} set is a file. Name another path, or remove it.")
    return chosen


def find_format(path: Path) -> Format | None:
    """The format of what is at a path; None for a file of another kind. A folder is native unless it shows another."""
    if path.is_dir():
        return _folder_format(path) or FORMATS["native"]
    return FORMATS["safetensors"] if looks_like_safetensors_set(read_start(path, 256)) else None


def find_sets(path: Path) -> list[Path]:
    """The path itself if it is a file or one set; the sets in it, hidden ones left out, if it is a folder of sets."""
    if not path.is_dir() or _folder_format(path):
        return [path]
    inner = sorted(place for place in path.iterdir() if not place.name.startswith("."))
    return [place for place in inner if (_folder_format(place) if place.is_dir() else _is_set_file(place))]


def _folder_format(folder: Path) -> Format | None:
    return next((one for one in FORMATS.values() if one.commit_file and (folder / one.commit_file).exists()), None)


def _is_set_file(path: Path) -> bool:
    return path.suffix == FORMATS["safetensors"].suffix and find_format(path) is not None

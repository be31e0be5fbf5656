"""Zip archives of torch.save and numpy.savez, and the pickle in the former: looked through before anything reads them.

`weights_only=True` keeps a pickle from running code, but not from asking for memory: `bytearray(10**10)` is three
instructions of it. So a pickle may name what builds tensors and nothing else, and have as many instructions as a file
of vectors needs.
"""

from __future__ import annotations

import io
import pickletools
import re
import struct
import zipfile
from typing import TYPE_CHECKING, Any

import torch

from rotalabs_steer.errors import FileFormatError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

ZIP_ERRORS = (
    zipfile.BadZipFile, ValueError, OSError, NotImplementedError, RuntimeError, EOFError, LookupError, struct.error,
)  # fmt: skip
"""What zipfile raises on damaged archives: fuzzing has seen most of them."""

_END, _END_64, _LOCATOR_64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_MAX_PICKLE_BYTES = 4 * 2**20
_MAX_INSTRUCTIONS = 50_000
"""A tensor takes 40. An instruction of one byte can make an object of hundreds."""

_BUILDS_TENSORS = re.compile(
    r"torch \w+Storage|torch\.storage UntypedStorage|torch (float|bfloat|int|uint|complex)\d+|torch bool"
    r"|torch\._utils _rebuild_(tensor_v2|parameter|meta_tensor_no_storage|sparse_tensor)"
    r"|torch\.serialization _get_layout|torch (Size|device)|collections OrderedDict"
)
_TENSORS_ONLY = "is not a plain PyTorch tensor file: it holds more than plain tensors, and reading that could run code"


def check_archive(content: bytes, path: Path) -> None:
    """Refuses what is no zip archive, a compressed one, one that would unpack to more than its own size, and one that
    torch's reader could take for another than Python's.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members, start = archive.infolist(), archive.start_dir
    except ZIP_ERRORS as error:
        raise FileFormatError(f"{path} is not a PyTorch file (a zip archive written by torch.save).") from error
    unpacked = sum(member.file_size for member in members)
    if unpacked > len(content):
        raise FileFormatError(f"{path} would unpack to {unpacked} bytes from {len(content)}. Not read.")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise FileFormatError(f"{path} is a compressed archive. Write it with torch.save or numpy.savez.")
    names = {member.filename.lower() for member in members}
    first = min((member.header_offset for member in members), default=0)
    if first != 0 or len(names) != len(members) or _directory_starts(content) != {start}:
        raise FileFormatError(f"{path} is an archive that can be read in two ways. Write it with torch.save.")


def _directory_starts(content: bytes) -> set[int | None]:
    """Where the end of an archive says that the list of its members begins, in each of the two forms that there are."""
    if content[-22:-18] != _END:
        return {None}
    starts: set[int | None] = {int.from_bytes(content[-6:-2], "little")}
    if content[-42:-38] == _LOCATOR_64:
        record, place = content[-98:-42], int.from_bytes(content[-34:-26], "little")
        found = record.startswith(_END_64) and place == len(content) - 98
        starts.add(int.from_bytes(record[48:56], "little") if found else None)
    return starts


def load_tensors(content: bytes, path: Path, device: str, stand_ins: Mapping[str, type] | None = None) -> Any:
    """What torch.save wrote, of plain tensors and containers. Device "meta" loads shapes without data.

    Args:
        content: of an archive that `check_archive` has passed.
        stand_ins: classes to use for those that a pickle names, by the pickle's "module name".
    """
    stand_ins = stand_ins or {}
    refused = [
        name
        for name in named_in(read_pickle(content, path), path)
        if name not in stand_ins and not _BUILDS_TENSORS.fullmatch(name)
    ]
    if refused:
        raise FileFormatError(f"{path} {_TENSORS_ONLY} ({', '.join(sorted(refused))[:200]})")
    known: list[Any] = [(stand_in, name.replace(" ", ".")) for name, stand_in in stand_ins.items()]
    try:
        with torch.serialization.safe_globals(known):
            return torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    except Exception as error:  # damaged input makes the unpickler raise whatever its instructions run into
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        if "weights only" in reason.lower().replace("_", " "):  # torch's message recommends running the file's code
            raise FileFormatError(f"{path} {_TENSORS_ONLY}") from error
        raise FileFormatError(f"{path} is not a plain PyTorch tensor file: {reason}") from error


def read_pickle(content: bytes, path: Path) -> bytes:
    """The one pickle in an archive of torch.save."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            found = [member for member in archive.infolist() if member.filename.lower().endswith("data.pkl")]
            if len(found) != 1:
                raise FileFormatError(f"{path} is not a PyTorch file: it holds {len(found)} pickles, expected one.")
            if found[0].file_size > _MAX_PICKLE_BYTES:
                raise FileFormatError(
                    f"{path} has a pickle of {found[0].file_size:,} bytes, more than {_MAX_PICKLE_BYTES:,}. Not read."
                )
            return archive.read(found[0])
    except ZIP_ERRORS as error:
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(f"{path} is damaged: {str(error)[:200]}") from error


def named_in(program: bytes, path: Path, instructions: frozenset[str] | None = None) -> set[str]:
    """The functions and classes that a pickle names, as "module name". Nothing is executed.

    Args:
        instructions: the only ones that it may have.

    Raises:
        FileFormatError: it is damaged, has others, or more than a file of vectors needs.
    """
    named: set[str] = set()
    try:
        for count, (code, argument, _) in enumerate(pickletools.genops(program)):
            if instructions is not None and code.name not in instructions:
                raise FileFormatError(f"{path} {_TENSORS_ONLY} ({code.name})")
            if count >= _MAX_INSTRUCTIONS or ("PUT" in code.name and int(str(argument)) > _MAX_INSTRUCTIONS):
                raise FileFormatError(f"{path} has a pickle of more than {_MAX_INSTRUCTIONS:,} instructions. Not read.")
            if code.name in {"GLOBAL", "INST"}:
                named.add(str(argument))
            elif code.name in {"STACK_GLOBAL", "EXT1", "EXT2", "EXT4"}:
                named.add(code.name)  # it takes the name from elsewhere: unknown, so refused
    except FileFormatError:
        raise
    except Exception as error:  # of a damaged pickle: whatever its bytes run into
        raise FileFormatError(f"{path} is not a plain PyTorch tensor file: {str(error)[:200]}") from error
    return named

"""Zip archives, as torch.save and numpy.savez write them: nothing in one is unpacked or copied."""

from __future__ import annotations

import struct
import zipfile
from typing import TYPE_CHECKING

from rotalabs_steer.errors import FileFormatError
from rotalabs_steer.files.reading import ByteFile

if TYPE_CHECKING:
    from pathlib import Path

_MAX_DIRECTORY_BYTES = 2**19
"""Of the list of an archive's members: each takes ten times its length in memory. 4,096 vectors have one of 400 kB."""

_LOCAL_HEADER_BYTES = 30


def open_archive(content: bytearray, path: Path) -> dict[str, memoryview]:
    """The members of an archive by name, as they lie in its content.

    Raises:
        FileFormatError: it is no zip archive, damaged, compressed, or has more members than vectors need.
    """
    try:
        with zipfile.ZipFile(ByteFile(content, limit=_MAX_DIRECTORY_BYTES)) as archive:
            members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise FileFormatError(f"{path} is a compressed archive. Write it with torch.save or numpy.savez.")
        found = {member.filename: _data(member, content) for member in members}
    except FileFormatError:
        raise
    except Exception as error:  # of a damaged archive: whatever zipfile runs into
        raise FileFormatError(f"{path} is not a file of torch.save or numpy.savez: {str(error)[:200]}") from error
    if len(found) != len(members):
        raise FileFormatError(f"{path} holds two files of one name.")
    return found


def _data(member: zipfile.ZipInfo, content: bytearray) -> memoryview:
    names = struct.unpack_from("<HH", content, member.header_offset + _LOCAL_HEADER_BYTES - 4)
    start = member.header_offset + _LOCAL_HEADER_BYTES + sum(names)
    if not 0 < start <= start + member.file_size <= len(content):
        raise ValueError(f"{member.filename!r:.80} lies outside of it")
    return memoryview(content)[start : start + member.file_size]

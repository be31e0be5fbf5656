"""Zip archives, as torch.save and numpy.savez write them. Members are used where they lie; none is unpacked."""

from __future__ import annotations

import io
import struct
import zipfile
from typing import TYPE_CHECKING

from rotalabs_steer.errors import FileFormatError

if TYPE_CHECKING:
    from pathlib import Path

_MAX_DIRECTORY_BYTES = 2**19
"""The maximum size of an archive's central directory, its list of members. Parsed, it takes ten times as much memory.

That of 4,096 vectors has 400 kB.
"""

_LOCAL_HEADER_BYTES = 30


def open_archive(content: bytearray, path: Path) -> dict[str, memoryview]:
    """The members of an archive by name, as they lie in its content.

    Raises:
        FileFormatError: it is not a zip archive, is damaged or compressed, or has more members than vectors need.
    """
    try:
        with zipfile.ZipFile(_LimitedReads(content)) as archive:
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


class _LimitedReads(io.BytesIO):
    """The archive as a file that refuses to read a central directory of any size that is claimed."""

    def read(self, count: int | None = -1, /) -> bytes:
        if count is not None and count > _MAX_DIRECTORY_BYTES:
            raise ValueError(f"it asks for {count:,} bytes at once, more than {_MAX_DIRECTORY_BYTES:,}")
        return super().read(count)

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
        with zipfile.ZipFile(ContentReader(content, _MAX_DIRECTORY_BYTES)) as archive:
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


class ContentReader(io.RawIOBase):
    """Content in memory as a file that can be read. `io.BytesIO` would copy it.

    No read takes more than `limit` bytes at once, because a damaged archive can claim a central directory of any size.
    """

    def __init__(self, content: bytearray | memoryview, limit: int) -> None:
        self._content = memoryview(content)
        self._limit = limit
        self._position = 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Sets the position, in bytes, and returns it."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self._content)}[whence]
        self._position = max(0, start + offset)
        return self._position

    def tell(self) -> int:
        """The position in bytes."""
        return self._position

    def read(self, count: int = -1, /) -> bytes:
        """The next `count` bytes, or all that is left."""
        rest = self._content[self._position :]
        found = rest if count < 0 else rest[:count]
        if max(count, len(found)) > self._limit:
            raise ValueError(f"it asks for {max(count, len(found)):,} bytes at once, more than {self._limit:,}")
        self._position += len(found)
        return bytes(found)

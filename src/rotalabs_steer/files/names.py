"""Names: of files and folders, refused if they are unsafe on Windows, macOS or Linux; of models, as they are shown."""

from __future__ import annotations

import re
import unicodedata
from pathlib import PureWindowsPath

from rotalabs_steer.errors import FileFormatError, OptionError

_MAX_BYTES = 200
"""Systems allow 255 bytes, but temporary files beside a file have longer names than the file."""

MODEL_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

_FAULTS = (
    (r"|\.|\.\.", "it names a folder relative to another"),
    (r'.*[\x00-\x1f\x7f<>:"/\\|?*\[\]].*', "it has a character that some systems read as more than a letter"),
    (r" .*|.*[. ]", "Windows drops spaces and dots at its ends"),
    (r"~.*", "a shell would read it as a home folder"),
    (r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$) *(\..*)?", "it is a device on Windows"),
)


def check_name(name: str) -> str:
    """The name of a file or folder, if it is safe.

    Raises:
        FileFormatError: some operating system takes it for a path, a device or another file.
    """
    reasons = [reason for pattern, reason in _FAULTS if re.fullmatch(pattern, name, re.IGNORECASE | re.DOTALL)]
    if len(name.encode("utf-8", "replace")) > _MAX_BYTES:
        reasons.append("it is too long")
    if reasons:
        raise FileFormatError(f"{name!r:.120} is not a safe file name: {reasons[0]}.")
    return name


def check_behavior_folder(behavior: str) -> str:
    """The name of a behaviour, if it is safe as the name of a folder.

    Raises:
        OptionError: some operating system takes it for a path, a device or another file.
    """
    try:
        return check_name(behavior)
    except FileFormatError as error:
        raise OptionError(
            f"The behaviour {behavior!r:.120} gets a folder of its own, but {error} Give it another name in its file."
        ) from error


def check_relative(path: str) -> list[str]:
    """The parts of a relative path with forward slashes, if each is a safe name; an empty path has no parts."""
    return [check_name(part) for part in path.split("/")] if path else []


def folded(name: str) -> str:
    """A key that is the same for names that macOS or Windows take for one file: it ignores case and Unicode forms."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def shown_model_name(model: str) -> str:
    """A model's id, or only the last part of a path, because the paths of a machine are private."""
    return model if MODEL_ID.fullmatch(model) else short_model_name(model)


def short_model_name(model: str) -> str:
    """The last part of a model's id or path."""
    return PureWindowsPath(model).name  # which splits at both kinds of slashes

"""Long work in steps whose results are on disk as they come, so that it can be stopped and continued."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, TypeVar

from rotalabs_steer.errors import FileFormatError, OptionError
from rotalabs_steer.files.records import from_json, read_record, to_json, write_record

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_T = TypeVar("_T")
_LOGGER = logging.getLogger(__name__)


class FinishedSteps:
    """The results of finished steps, as JSON records in one file.

    Args:
        path: the file; None to keep nothing.
        work: what tells this work from any other.

    Raises:
        OptionError: the file holds steps of other work.
        FileFormatError: it holds something else.
    """

    def __init__(self, path: Path | None, work: str) -> None:
        self._path, self._work = path, work
        self._records: dict[str, Any] = {}
        if path is not None and path.exists():
            try:
                document = read_record(path)
                found, self._records = document["work"], dict(document["steps"])
            except (ValueError, KeyError, TypeError) as error:
                raise FileFormatError(f"{path} does not hold the steps of unfinished work. Remove it.") from error
            if found != work:
                raise OptionError(
                    f"{path} belongs to work with another model, other pairs or other options (a model whose weights, "
                    "adapters or chat template have changed is another). Choose another folder, or remove the file to "
                    "begin anew."
                )

    def do(self, name: str, compute: Callable[[], _T], kind: Any) -> _T:
        """The result of a step: the recorded one, or a new one, which is recorded.

        Args:
            kind: the type of the result, as `from_json` takes it.

        Raises:
            FileFormatError: what the file holds for this step is not of that type.
        """
        if name in self._records:
            recorded: _T = from_json(kind, self._records[name], f"{self._path}, step {name!r}")
            return recorded
        _LOGGER.info("%s", name)
        result = compute()
        self._records[name] = to_json(result)
        if self._path is not None:
            write_record(self._path, {"work": self._work, "steps": self._records})
        return result

    def forget(self) -> None:
        """Removes the file, once the work is done and its result is elsewhere."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

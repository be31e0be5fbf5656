"""A checkpoint of long work: the result of each step is on disk as soon as it is there, so the work can be resumed."""

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


class Checkpoint:
    """The results of finished steps, as JSON records in one file.

    Args:
        path: the file. With None the results are kept in memory only.
        work: a digest of everything that decides the results. A file with another digest is refused.

    Raises:
        OptionError: the file holds steps of other work.
        FileFormatError: the file does not hold steps at all.
    """

    def __init__(self, path: Path | None, work: str) -> None:
        self._path, self._work = path, work
        self._records: dict[str, Any] = {}
        if path is None or not path.exists():
            return
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

    def get_or_compute(self, step: str, compute: Callable[[], _T], kind: Any) -> _T:
        """The recorded result of a step, or a new result, which is then recorded.

        Args:
            kind: the type of the result, as `from_json` takes it.

        Raises:
            FileFormatError: the file holds something of another type for this step.
        """
        if step in self._records:
            recorded: _T = from_json(kind, self._records[step], f"{self._path}, step {step!r}")
            return recorded
        _LOGGER.info("%s", step)  # the command line shows it as the progress
        result = compute()
        self._records[step] = to_json(result)
        if self._path is not None:
            write_record(self._path, {"work": self._work, "steps": self._records})
        return result

    def remove(self) -> None:
        """Removes the file, once the final result is saved elsewhere."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

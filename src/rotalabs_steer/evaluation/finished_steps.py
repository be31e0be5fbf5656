"""Long work in steps whose results are on disk as they come, so that it can be stopped and continued."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any, TypeVar

from rotalabs_steer.errors import FileFormatError, OptionError
from rotalabs_steer.files.atomic import write_atomically

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
                document = json.loads(path.read_text("utf-8"))
                found, self._records = document["work"], dict(document["steps"])
            except (ValueError, KeyError, TypeError) as error:
                raise FileFormatError(f"{path} does not hold the steps of unfinished work. Remove it.") from error
            if found != work:
                raise OptionError(
                    f"{path} belongs to work with another model, other pairs or other options (a model whose weights, "
                    "adapters or chat template have changed is another). Choose another folder, or remove the file to "
                    "begin anew."
                )

    def do(
        self,
        name: str,
        compute: Callable[[], _T],
        to_record: Callable[[_T], Any] | None = None,
        from_record: Callable[[Any], _T] | None = None,
    ) -> _T:
        """The result of a step: the recorded one, or a new one, which is recorded.

        Args:
            to_record, from_record: to JSON's types and back, for a result that is of others.
        """
        if name in self._records:
            recorded: _T = self._records[name]
            return recorded if from_record is None else from_record(recorded)
        _LOGGER.info("%s", name)
        result = compute()
        self._records[name] = result if to_record is None else to_record(result)
        if self._path is not None:
            document = json.dumps({"work": self._work, "steps": self._records}, ensure_ascii=False)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, document.encode())
        return result

    def forget(self) -> None:
        """Removes the file, once the work is done and its result is elsewhere."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

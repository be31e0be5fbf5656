"""The state of an extraction that was stopped, on disk."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors
import safetensors.torch

from rotalabs_steer.errors import FileFormatError, OptionError
from rotalabs_steer.files.atomic import write_atomically

if TYPE_CHECKING:
    import os

    import torch

_SECONDS_BETWEEN_SAVES = 20.0


class Checkpoint:
    """A file with the sums so far and the number of batches done. It always holds a whole state, the old or the new.

    Args:
        work: identifies the extraction; the file of another one is refused, not overwritten.
        rank, size: this process's number and the number of processes; each of several has a file of its own.
    """

    def __init__(self, path: str | os.PathLike[str], work: str, rank: int, size: int) -> None:
        path = Path(path)
        self._path = path if size == 1 else path.with_name(f"{path.name}.{rank}-of-{size}")
        self._work = f"{work}/{rank}/{size}"
        self._saved_at = time.monotonic()

    def load(self) -> tuple[int, dict[str, torch.Tensor]]:
        """The number of batches done and the sums over them; (0, {}) if there is no file.

        Raises:
            OptionError: the file belongs to another extraction.
            FileFormatError: it is not a checkpoint.
        """
        if not self._path.exists():
            return 0, {}
        try:
            with safetensors.safe_open(self._path, "pt") as file:
                about = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            done = int(about["batches_done"])
        except (safetensors.SafetensorError, KeyError, ValueError) as error:
            raise FileFormatError(f"{self._path} is not a checkpoint of an extraction: {error}.") from error
        if about.get("work") != self._work:
            raise OptionError(
                f"{self._path} continues another extraction (other pairs, model, layers or options; a model whose "
                "weights or adapters have changed is another). Choose another file for resume=, or remove this one."
            )
        return done, tensors

    def save(self, done: int, tensors: dict[str, torch.Tensor], *, now: bool = False) -> None:
        """Writes the state if the last save is 20 seconds ago, or at once with `now`."""
        if not now and time.monotonic() - self._saved_at < _SECONDS_BETWEEN_SAVES:
            return
        about = {"work": self._work, "batches_done": str(done)}
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path, safetensors.torch.save(contiguous, about))
        self._saved_at = time.monotonic()

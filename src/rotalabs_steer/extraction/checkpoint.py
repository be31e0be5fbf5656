"""An extraction that was stopped, on disk: the sums so far, how far it came, and of which work."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
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


@dataclass(eq=False)
class Checkpoint:
    """A file that always holds a whole state: the old one or the new one.

    Args:
        work: what tells this extraction from any other; a file of other work is refused, not overwritten.
    """

    path: Path
    work: str
    _saved_at: float = field(default_factory=time.monotonic)

    @classmethod
    def at(cls, path: str | os.PathLike[str], work: str, rank: int, size: int) -> Checkpoint:
        """The checkpoint of this process: with several, each has a file of its own."""
        path = Path(path)
        return cls(path if size == 1 else path.with_name(f"{path.name}.{rank}-of-{size}"), f"{work}/{rank}/{size}")

    def load(self) -> tuple[int, dict[str, torch.Tensor]]:
        """How many batches are done, and the sums over them: (0, {}) where there is no file.

        Raises:
            OptionError: the file belongs to another extraction.
            FileFormatError: it is no checkpoint.
        """
        if not self.path.exists():
            return 0, {}
        try:
            with safetensors.safe_open(self.path, "pt") as file:
                about = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            done = int(about["batches_done"])
        except (safetensors.SafetensorError, KeyError, ValueError) as error:
            raise FileFormatError(f"{self.path} is not a checkpoint of an extraction: {error}.") from error
        if about.get("work") != self.work:
            raise OptionError(
                f"{self.path} continues another extraction (other pairs, model, layers or options; a model whose "
                "weights or adapters have changed is another). Choose another file for resume=, or remove this one."
            )
        return done, tensors

    def save(self, done: int, tensors: dict[str, torch.Tensor], *, now: bool = False) -> None:
        """Writes the state, unless that was done less than 20 seconds ago."""
        if not now and time.monotonic() - self._saved_at < _SECONDS_BETWEEN_SAVES:
            return
        about = {"work": self.work, "batches_done": str(done)}
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, safetensors.torch.save(contiguous, about))
        self._saved_at = time.monotonic()

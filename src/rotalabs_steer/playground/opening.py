"""Opens the backend that the fields of the page name."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rotalabs_steer.errors import ModelNameError, SteeringError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from rotalabs_steer.playground.comparisons import Backend

TRANSFORMERS, VLLM = "transformers", "vLLM server"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """The fields of the page: a model and a folder of vectors, or the address of a server."""

    engine: str = TRANSFORMERS
    model: str = ""
    vectors: str = ""
    server: str = ""


class Opener:
    """Makes backends, and keeps the model that was loaded last.

    Args:
        load_model: returns the model and tokenizer of a name.
        api_key: the key that is sent to servers.
    """

    def __init__(self, load_model: Callable[[str], tuple[nn.Module, Any]], api_key: str | None = None) -> None:
        self._load_model = load_model
        self._api_key = api_key
        self._loaded: tuple[str, nn.Module, Any] | None = None

    def open(self, choice: Choice) -> Backend:
        """The backend of a choice.

        Raises:
            SteeringError, OSError: it cannot be opened; the message says why, and what to do.
        """
        if choice.engine == VLLM:
            from rotalabs_steer.playground.vllm_backend import VllmBackend

            return VllmBackend.connect(choice.server, self._api_key)
        from rotalabs_steer.playground.transformers_backend import TransformersBackend

        name = choice.model.strip()
        if not name:
            raise ModelNameError("No model is named. Give a model folder, a Hugging Face id, or: sample")
        return TransformersBackend.open(lambda: self._model(name), choice.vectors)

    def _model(self, name: str) -> tuple[nn.Module, Any]:
        if self._loaded is None or self._loaded[0] != name:
            self._loaded = None  # two models may not fit at once
            self._loaded = (name, *self._load_model(name))
        return self._loaded[1:]


def explain(error: Exception) -> str:
    """An error in one sentence. The traceback of an unexpected error goes to the log."""
    if isinstance(error, SteeringError):
        return str(error)
    if isinstance(error, OSError):
        return str(error).strip().partition("\n")[0]
    _LOG.error("The playground failed.", exc_info=error)
    return f"Something failed that should not: {type(error).__name__}: {error}. Its traceback is in the terminal."

"""One answer, written while it is generated."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import StoppingCriteriaList, TextStreamer

from rotalabs_steer.generation.continuation import continue_rows
from rotalabs_steer.model.decoder import input_device

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import nn

    from rotalabs_steer.datasets import ChatTokenizer
    from rotalabs_steer.generation.answers import Sampling


def stream_answer(
    model: nn.Module,
    chat: ChatTokenizer,
    ids: Sequence[int],
    sampling: Sampling,
    write: Callable[[str], None],
    stop: Callable[[], bool] | None = None,
) -> str:
    """The answer to a prompt of token ids, as `answer_prompts` gives it.

    Args:
        write: is given each part of the answer as it comes.
        stop: is called after each token; the answer ends where it returns True.
    """
    options: dict[str, Any] = {"streamer": _Words(chat, write)}
    if sampling.temperature:
        options |= {"do_sample": True, "temperature": sampling.temperature}
    if stop is not None:
        options["stopping_criteria"] = StoppingCriteriaList([lambda *_, **__: stop()])
    device = input_device(model)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(sampling.seed)
        (row,) = continue_rows(model, chat, [ids], sampling.max_new_tokens, **options)
    return chat.decode(row).strip()


@contextmanager
def first_interrupt() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether Ctrl-C was pressed in this block. The second press raises as usual.

    An exception could end the model's call anywhere, so the first press only sets a flag, which ends an answer between
    two tokens.
    """
    pressed = False

    def press(*_: Any) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


class _Words(TextStreamer):  # type: ignore[misc]
    """Writes an answer word by word, without the white space around it, as `strip` leaves it."""

    def __init__(self, chat: ChatTokenizer, write: Callable[[str], None]) -> None:
        super().__init__(chat.tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._write = write
        self._begun, self._space = False, ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Holds white space back until something stands after it."""
        words = text.strip() and self._space + text
        if not words:
            self._space += text
            return
        self._write(words.rstrip() if self._begun else words.strip())
        self._begun, self._space = True, words[len(words.rstrip()) :]

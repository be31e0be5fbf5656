"""A conversation with a steered model, and the commands that change it on the way."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from rotalabs_steer.cli.streaming import first_interrupt, stream_answer
from rotalabs_steer.errors import OptionError
from rotalabs_steer.files.atomic import write_atomically
from rotalabs_steer.steering.active_steering import steering_of
from rotalabs_steer.steering.plain_model import unsteered

if TYPE_CHECKING:
    from collections.abc import Callable

    from rotalabs_steer.cli.steered import Steered
    from rotalabs_steer.generation.answers import Sampling

HELP = """\
/strength BEHAVIOUR NUMBER   steer more or less from now on
/strengths                   show the strengths
/compare                     answer the last message again, unsteered
/undo                        take back the last message and its answer
/reset                       begin a new conversation
/system TEXT                 set the system message; without TEXT, remove it
/save FILE                   write the conversation to a new JSON file
/quit                        leave, as does Ctrl-D
Ctrl-C stops an answer. Pressed again, it leaves."""


class Conversation:
    """Messages so far, and how they are answered.

    Args:
        steered: the model; the caller attaches its injector.
        sampling: how answers are generated; its system prompt stands first.
        write: shows a part of an answer.
        strengths_changed: is called after a command that changed them.

    Raises:
        ChatTemplateError: the model's chat template cannot render a conversation.
    """

    def __init__(
        self,
        steered: Steered,
        sampling: Sampling,
        write: Callable[[str], None],
        strengths_changed: Callable[[], None],
    ) -> None:
        self._model, self._chat, self._injector = steered.model.network, steered.model.chat, steered.injector
        self._sampling, self._write, self._strengths_changed = sampling, write, strengths_changed
        self._facts = steered.facts | {"seed": sampling.seed}
        self.messages: list[dict[str, str]] = []
        self.set_system(sampling.system_prompt or "")

    def say(self, text: str) -> None:
        """Answers a message. Where that fails, the conversation is as it was before."""
        self.messages.append({"role": "user", "content": text})
        try:
            answer = self._answer(self.messages)
        except BaseException:
            self.messages.pop()
            raise
        self.messages.append({"role": "assistant", "content": answer})

    def command(self, text: str) -> str | None:
        """Does what a line that begins with / asks for, and gives what is to be shown; None for nothing."""
        word, _, rest = text.partition(" ")
        commands: dict[str, Callable[[str], str | None]] = {
            "/help": lambda _: HELP,
            "/strength": self._set_strength,
            "/strengths": lambda _: self._strengths(),
            "/compare": lambda _: self._compare(),
            "/undo": lambda _: self._undo(),
            "/reset": lambda _: self._reset(),
            "/system": self.set_system,
            "/save": self._save,
        }
        if word not in commands:
            return f"There is no command {word}. /help lists the commands."
        return commands[word](rest.strip())

    def set_system(self, text: str) -> str:
        """Puts a system message before the conversation, if the chat template takes it; no text removes it."""
        start = [{"role": "system", "content": text}] if text else []
        talk = [message for message in self.messages if message["role"] != "system"]
        asked = talk if talk else [{"role": "user", "content": "Hello!"}]
        self._chat.render([*start, *asked])  # raises before anything changes if the template cannot render it
        self.messages = [*start, *talk]
        return f"The system message is now: {text}" if text else "There is no system message now."

    def _answer(self, messages: list[dict[str, str]]) -> str:
        ids = self._chat.ids(self._chat.render(messages), special=False)
        turn = sum(message["role"] == "user" for message in messages)  # so that each turn draws its own random numbers
        sampling = dataclasses.replace(self._sampling, seed=self._sampling.seed + turn - 1)
        with first_interrupt() as pressed:
            answer = stream_answer(self._model, self._chat, ids, sampling, self._write, pressed)
            stopped = pressed()
        self._write(" (stopped)\n" if stopped else "\n")
        return answer

    def _set_strength(self, text: str) -> str:
        behavior, _, number = text.rpartition(" ")
        if not behavior:
            return "Use /strength BEHAVIOUR NUMBER."
        if self._injector is not None:
            try:
                self._injector.set_strength(behavior.strip(), float(number))
            except (KeyError, ValueError) as error:
                return str(error.args[0])
            self._strengths_changed()
        return self._strengths()

    def _strengths(self) -> str:
        if self._injector is None:
            return "Nothing steers. Start the chat with --steer."
        return ", ".join(f"{name} {value}" for name, value in self._injector.strengths.items())

    def _compare(self) -> str | None:
        if not self._talk():
            return "There is no answer to compare with yet."
        if not len(steering_of(self._model).vectors):
            return self._strengths()
        self._write("unsteered: ")
        with unsteered(self._model):
            self._answer(self.messages[:-1])
        return None

    def _undo(self) -> str:
        talk = self._talk()
        if not talk:
            return "There is nothing to take back."
        self.messages = self.messages[:-2]
        return f"Taken back: {talk[-2]['content']}"

    def _reset(self) -> str:
        self.messages = [message for message in self.messages if message["role"] == "system"]
        return "This is a new conversation."

    def _save(self, text: str) -> str:
        if not text:
            return "Use /save FILE."
        path = Path(text).expanduser()
        if path.exists():
            raise OptionError(f"{path} exists. Name a new file.")
        strengths = self._injector.strengths if self._injector is not None else {}
        document = self._facts | {"strengths": strengths, "messages": self.messages}
        write_atomically(path, (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode())
        return f"Saved in {path}."

    def _talk(self) -> list[dict[str, str]]:
        return [message for message in self.messages if message["role"] != "system"]


def enable_line_editing() -> None:
    """Lets the arrow keys edit a line and bring back earlier ones, where Python has readline."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401

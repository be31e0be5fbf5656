"""A tokenizer with the options of its chat template, which turns prompts and texts into token ids."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from rotalabs_steer.chat.checked_chat import CheckedChat, render_checked
from rotalabs_steer.chat.conversations import as_messages, content_text
from rotalabs_steer.chat.template_source import TemplateSource
from rotalabs_steer.chat.thoughts import closes_thought, is_tag, without_blocks
from rotalabs_steer.errors import ChatTemplateError, OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rotalabs_steer.chat.conversations import Message, Prompt

_USABLE_ARGUMENTS = ("chat_template", "tools", "documents")
_MARKUP_OF_ANSWERS = re.compile("tool|function|call|python", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class ChatTokenizer:
    """A tokenizer and the options of its chat template. Every function that takes a tokenizer also takes one of these.

    tokenizer = ChatTokenizer.of(AutoTokenizer.from_pretrained("Qwen/Qwen3-4B"), {"enable_thinking": False})

    Attributes:
        tokenizer: a tokenizer of transformers.
        template_options: further arguments of `apply_chat_template`.
        processor_template: the chat template of a processor, used instead of the tokenizer's own.
    """

    tokenizer: Any
    template_options: Mapping[str, Any] = field(default_factory=dict)
    processor_template: Any = None

    @classmethod
    def of(cls, tokenizer: Any, template_options: Mapping[str, Any] | None = None) -> ChatTokenizer:
        """A tokenizer, a processor's tokenizer or another `ChatTokenizer`, with options added to those it has.

        Raises:
            OptionError: the object is not a tokenizer, or the template does not read an option or its value.
            ChatTemplateError: there are options, but the tokenizer has no chat template.
        """
        if isinstance(tokenizer, cls):
            chat = tokenizer
        elif callable(getattr(tokenizer, "tokenizer", None)):  # a processor
            chat = cls(tokenizer.tokenizer, processor_template=getattr(tokenizer, "chat_template", None))
        else:
            chat = cls(tokenizer)
        if not callable(chat.tokenizer):
            raise OptionError(
                f"The tokenizer is {tokenizer!r:.60}, of type {type(tokenizer).__name__}; give a tokenizer of "
                "transformers, as AutoTokenizer.from_pretrained(MODEL) loads it."
            )
        if not template_options:
            return chat
        if not isinstance(template_options, Mapping):
            raise OptionError(
                f"template_options is {template_options!r:.60}; give a mapping, as in {{'enable_thinking': False}}."
            )
        chat = dataclasses.replace(chat, template_options={**chat.template_options, **template_options})
        chat._check_options()
        return chat

    def prompt(self, prompt: Prompt, system: str | None = None, response: str = "") -> tuple[int, ...]:
        """A user's text or a conversation as token ids, including the header of the assistant's answer.

        Args:
            response: the text that will follow.

        Raises:
            DatasetError: the prompt is empty or a malformed conversation.
            ChatTemplateError: the template cannot render it, or the response would not stand where an answer does.
        """
        messages = as_messages(prompt, system)
        self._refuse_rendered(messages)
        chat = self._render(messages, {})
        if response.strip():
            self._check_place(chat, response)
        return self.ids(chat.text, special=False)

    def open_thought(self, prompt: Prompt, system: str | None = None) -> str:
        """The tag of the block of thoughts that the template opens for the answer; "" without such a block."""
        return self._render(as_messages(prompt, system), {}).thought

    def render(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        """A conversation as a string, including the header of the assistant's answer.

        Args:
            messages: dicts with `role`, `content` and any other fields that the template reads.
            options: further options of the template.

        Raises:
            ChatTemplateError: the template cannot render it.
        """
        return self._render(messages, options).text

    def ids(self, text: str, *, special: bool) -> tuple[int, ...]:
        """A text as token ids, without a chat template.

        Args:
            special: add the special tokens that the tokenizer adds to a text, such as the beginning of the sequence.
                False for a text that follows a prompt.
        """
        bare = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        if not special:
            return tuple(bare)
        whole = list(self.tokenizer(text)["input_ids"])
        # A text that a chat template has rendered begins with special tokens already, which must not come twice.
        for added in range(len(whole) - len(bare), 0, -1):
            if whole[added : added + len(bare)] == bare:
                return tuple(whole[added:] if bare[:added] == whole[:added] else whole)
        return tuple(whole)

    def with_offsets(self, text: str, *, special: bool) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
        """As `ids`, and where each token begins and ends in the text. The tokenizer must be a fast one."""
        ids = self.ids(text, special=special)
        encoded = self.tokenizer(text, return_offsets_mapping=True, add_special_tokens=special)
        return ids, [tuple(place) for place in encoded["offset_mapping"]][len(encoded["input_ids"]) - len(ids) :]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids without special tokens, except in thoughts, whose tags tell them from the answer."""
        numbers = [int(number) for number in ids]
        special = self._special_tokens
        tags = {number for number, token in special.items() if is_tag(token)}
        # Where tags name a channel, as in gpt-oss, this token ends the name. Without it, the name looks like text.
        if any("channel" in special[number] for number in tags):
            tags |= {number for number, token in special.items() if token == "<|message|>"}
        length = max((place for place, number in enumerate(numbers, 1) if number in tags), default=0)
        thoughts = self.tokenizer.decode(numbers[:length], skip_special_tokens=False) if length else ""
        return str(thoughts + self.tokenizer.decode(numbers[length:], skip_special_tokens=True))

    @cached_property
    def _special_tokens(self) -> dict[int, str]:
        """The special tokens by id, including those that were added for the chat template."""
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        return {number: str(token) for number, token in added.items() if getattr(token, "special", False)}

    def _render(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> CheckedChat:
        given = {**self.template_options, **options}
        given["chat_template"] = self._source(given.get("tools"))

        def apply(chat: Sequence[Message], add_generation_prompt: bool) -> str:
            try:
                return str(
                    self.tokenizer.apply_chat_template(
                        list(chat), tokenize=False, add_generation_prompt=add_generation_prompt, **given
                    )
                )
            except Exception as error:  # templates raise whatever their author chose
                raise ChatTemplateError(
                    f"The tokenizer's chat template refused the messages (roles {[m['role'] for m in chat]}): {error}. "
                    "If it has no system role, put the system message into the prompt."
                ) from error

        return render_checked(apply, messages)

    def _refuse_rendered(self, messages: Sequence[Message]) -> None:
        """Refuses messages that a template has rendered already, because they would be rendered twice."""
        listed = {*getattr(self.tokenizer, "all_special_tokens", ()), *self._special_tokens.values()}
        special = sorted(token for token in listed if len(token) > 1 and not is_tag(token))
        for message in messages:
            text = content_text(message).strip()
            for token in special:
                is_own = message["role"] == "assistant" and _MARKUP_OF_ANSWERS.search(token)
                if text.startswith(token) and not is_own:
                    raise ChatTemplateError(
                        f"The {message['role']} message {text!r:.60} begins with the special token {token!r}, so a "
                        "chat template seems to have been applied to it. Give the text itself; a rendered text can be "
                        "one side of a pair without a prompt."
                    )

            before, after = self._user_turn
            if message["role"] == "user" and before and after and text.startswith(before) and text.endswith(after):
                raise ChatTemplateError(
                    f"The user message {text!r:.60} stands between {before!r:.40} and {after!r:.40} as the template "
                    "writes it, so the template seems to have been applied to it. Give the text itself."
                )

    @cached_property
    def _user_turn(self) -> tuple[str, str]:
        """What the template writes before and after a user's text, without the beginning of the sequence."""
        try:
            before, _, after = self.render([{"role": "user", "content": "zqx"}]).partition("zqx")
        except ChatTemplateError:  # it wants more messages than one
            return "", ""
        return before.removeprefix(getattr(self.tokenizer, "bos_token", None) or "").strip(), after.strip()

    def _check_place(self, chat: CheckedChat, response: str) -> None:
        """Refuses a response that would stand where the model does not write its answer."""
        if not without_blocks(response).startswith(chat.missing_header):  # thoughts may go before it
            raise ChatTemplateError(
                f"The tokenizer's chat template writes {chat.missing_header!r} before an answer, but not at the end of "
                "a prompt, so the model would not read a response there as its answer. Begin each response with it, or "
                "set a tokenizer.chat_template that writes it with add_generation_prompt."
            )
        if not chat.thought or closes_thought(response):
            return
        given = self.template_options
        options = [name for name in self._parsed().thinking_options if given.get(name) is not False]
        advice = (
            f"Pass template_options={{{options[0]!r}: False}} (--template {options[0]}=false)."
            if options
            else "The template has no option against it: begin each response with the end of the thoughts (such as "
            "'</think>'), or set a tokenizer.chat_template that closes the block."
        )
        raise ChatTemplateError(
            f"The chat template ends the prompt inside a block of thoughts ({chat.thought}), so the model would read a "
            f"response as a thought and not as its answer. {advice}"
        )

    def _check_options(self) -> None:
        try:
            json.dumps(dict(self.template_options))
        except (TypeError, ValueError) as error:
            raise OptionError(f"template_options hold a value that JSON cannot represent: {error}.") from error
        chosen = self.template_options.get("chat_template")
        if not isinstance(chosen, str | None):
            raise OptionError(f"The template option chat_template is {chosen!r:.60}; give a template or its name.")
        arguments = inspect.signature(self.tokenizer.apply_chat_template).parameters
        template = self._parsed()
        for name, value in self.template_options.items():
            if name in template.set_by_rendering or (name in arguments and name not in _USABLE_ARGUMENTS):
                raise OptionError(f"{name} is not an option of a chat template. It is set where a prompt is rendered.")
            if name != "chat_template":
                template.check_option(name, value)

    def _parsed(self) -> TemplateSource:
        return TemplateSource(self._source(self.template_options.get("tools")))

    def _source(self, tools: Any) -> str:
        """The source of the chat template in use: the chosen one, or the one that transformers would take.

        Raises:
            ChatTemplateError: there is none.
        """
        named = self.processor_template or getattr(self.tokenizer, "chat_template", None)
        chosen = self.template_options.get("chat_template")
        if isinstance(named, Mapping):
            usual = "tool_use" if tools is not None and "tool_use" in named else "default"
            if chosen is None and usual not in named:
                raise ChatTemplateError(
                    f"The tokenizer has several chat templates ({', '.join(sorted(named))}), and none of them is the "
                    "default. Choose one with template_options={'chat_template': NAME}."
                )
            return str(named.get(chosen or usual, chosen))
        if not (chosen or named):
            raise ChatTemplateError(
                "The tokenizer has no chat template, as is usual for base models, so a prompt cannot be rendered as "
                "the model expects it. Use the model's chat version, or set tokenizer.chat_template (for example "
                "\"{% for m in messages %}{{ m['content'] }}\\n{% endfor %}\"). Pairs without prompts, which are "
                "two plain texts, need none."
            )
        return str(chosen or named)

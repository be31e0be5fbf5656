"""Runs any Inspect task on a steered model.

inspect eval task.py --model rotalabs_steer/MODEL -M vectors=FOLDER -M strength=1.0

Inspect finds this module through the entry point group `inspect_ai` and imports it at every start. The module therefore
imports large libraries only when a model is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rotalabs_steer.errors import OptionError, missing_dependency

try:
    from inspect_ai.model import modelapi
except ImportError as error:
    raise missing_dependency("The Inspect integration", "inspect", error) from error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from inspect_ai.model import ChatMessage, ModelAPI


@modelapi(name="rotalabs_steer")
def rotalabs_steer() -> type[ModelAPI]:
    """Inspect's Hugging Face provider, steered in every call.

    Model arguments: `vectors` (path of a set, a single vector, or a folder of sets); `strength` (one number, or
    `{behavior: number}`); `layer`; `injection_mode`; `check_model`; `template_options` (a dict, or
    "enable_thinking=false;reasoning_effort=high"); and those of the provider, such as `device`.
    """
    from inspect_ai.model._providers.hf import HuggingFaceAPI

    from rotalabs_steer.chat.tokenizer import ChatTokenizer
    from rotalabs_steer.integrations.harness_steering import steer_model
    from rotalabs_steer.integrations.template_options import parse_template_options

    class SteeredHuggingFaceAPI(HuggingFaceAPI):
        def __init__(
            self,
            model_name: str,
            *args: Any,
            vectors: str | None = None,
            strength: Any = 1.0,
            layer: int | None = None,
            injection_mode: str = "all",
            check_model: bool = True,
            template_options: str | Mapping[str, Any] | None = None,
            **options: Any,
        ) -> None:
            if vectors is None:
                raise OptionError("Say which vectors steer the model: -M vectors=FOLDER.")
            super().__init__(model_name, *args, **options)
            given = parse_template_options(template_options)
            if self.enable_thinking is not None:
                given = {"enable_thinking": self.enable_thinking, **given}
            if isinstance(self.chat_template, str):
                given = {"chat_template": self.chat_template, **given}
            self._chat = ChatTokenizer.of(self.tokenizer, given)
            if self.use_chat_template is not False and (self.chat_template or self.tokenizer.chat_template):
                # The template writes the first special token itself, and Inspect would add a second one.
                self.tokenizer_call_args = {"add_special_tokens": False} | (self.tokenizer_call_args or {})
            self.injector = steer_model(
                self.model, vectors, strength, layer=layer, injection_mode=injection_mode, check_model=check_model
            )

        def _apply_chat_template(
            self, hf_messages: list[ChatMessage], tools_list: list[dict[str, Any]], chat_template: str | None
        ) -> str:
            """The conversation as a string. It is an error if the template drops a message."""
            messages = [_with_usual_calls(message.model_dump(exclude_none=True)) for message in hf_messages]
            return self._chat.render(messages, tools=tools_list or None)

        def close(self) -> None:
            self.injector.detach()
            super().close()

    return SteeredHuggingFaceAPI


def _with_usual_calls(message: dict[str, Any]) -> dict[str, Any]:
    """A message with tool calls in the form that chat templates read. Inspect has another one."""
    calls = [
        {"id": call["id"], "type": "function", "function": {"name": call["function"], "arguments": call["arguments"]}}
        for call in message.get("tool_calls") or ()
    ]
    return message | ({"tool_calls": calls} if calls else {})

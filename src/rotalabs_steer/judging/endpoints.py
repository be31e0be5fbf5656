"""The two wire formats in which judges are asked, through their vendors' own clients, which retry and back off."""

from __future__ import annotations

import importlib
import json
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rotalabs_steer.errors import JudgeError, MissingVerdictError, OptionError, missing_dependency

if TYPE_CHECKING:
    from collections.abc import Mapping

_FATAL_STATUSES = (401, 403, 404)
"""The key, the model or the address is wrong, so no other text would get a verdict either."""

_NO_KEY = "none"  # Local servers ask for no key, but the clients insist on one.


@dataclass(frozen=True)
class Reply:
    """A verdict as JSON text, and its cost in tokens (0 if the endpoint does not report it)."""

    verdict: str
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Access:
    """How to reach a judge. `LLMJudge` describes the fields."""

    provider: str
    model: str
    api_key: str | None
    base_url: str | None
    max_tokens: int
    max_retries: int
    timeout: float
    options: Mapping[str, Any]


def open_endpoint(access: Access) -> Endpoint:
    """The endpoint of a provider.

    Raises:
        OptionError: the provider is unknown, or there is no key.
        MissingDependencyError: the provider's client is not installed.
    """
    if access.provider == "openai":
        return _OpenAI(access)
    if access.provider == "anthropic":
        return _Anthropic(access)
    raise OptionError(f"Unknown provider {access.provider!r}. Use 'openai' (any compatible endpoint) or 'anthropic'.")


class Endpoint(ABC):
    """Answers questions in JSON. The vendor's module and its client have the names that a subclass gives."""

    _module: ClassVar[str]
    _client_class: ClassVar[str]

    def __init__(self, access: Access) -> None:
        try:
            vendor: Any = importlib.import_module(self._module)
        except ImportError as error:
            raise missing_dependency("LLMJudge", "judge", error) from error
        self._access = access
        self._error: type[Exception] = vendor.APIError
        self._client = getattr(vendor, self._client_class)(
            api_key=self._key(f"{self._module.upper()}_API_KEY"),
            base_url=access.base_url,
            max_retries=access.max_retries,
            timeout=access.timeout,
        )

    def ask(self, instructions: str, message: str, schema: Mapping[str, Any]) -> Reply:
        """The verdict, not yet checked against the schema.

        Raises:
            MissingVerdictError: there is no verdict on this message.
            JudgeError: the judge cannot be asked at all.
        """
        try:
            return self._ask(instructions, message, dict(schema))
        except self._error as error:
            status = getattr(error, "status_code", None)
            judge = f"The judge {self._access.model!r}"
            if status in _FATAL_STATUSES:
                raise JudgeError(f"{judge} cannot be asked (status {status}): {error}") from error
            retried = f"retried up to {self._access.max_retries} times"
            raise MissingVerdictError(f"{judge} gave no verdict ({retried}): {error}") from error

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    @abstractmethod
    def _ask(self, instructions: str, message: str, schema: dict[str, Any]) -> Reply:
        """One request. The vendor's own errors are raised as they are."""

    def _key(self, variable: str) -> str:
        key = self._access.api_key or os.environ.get(variable)
        if not key and self._access.base_url is None:
            raise OptionError(f"No API key for {self._access.model!r}: pass api_key or set {variable}.")
        return key or _NO_KEY

    def _too_long(self) -> MissingVerdictError:
        return MissingVerdictError(
            f"{self._access.model} ran into max_tokens={self._access.max_tokens} before its verdict was complete. "
            "Raise max_tokens."
        )


class _OpenAI(Endpoint):
    """Chat completions with a JSON schema as the response format."""

    _module, _client_class = "openai", "OpenAI"

    def _ask(self, instructions: str, message: str, schema: dict[str, Any]) -> Reply:
        completion: Any = self._client.chat.completions.create(
            model=self._access.model,
            messages=[{"role": "system", "content": instructions}, {"role": "user", "content": message}],
            max_completion_tokens=self._access.max_tokens,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "verdict", "strict": True, "schema": schema},
            },
            extra_body=dict(self._access.options),
        )
        if not completion.choices:
            raise MissingVerdictError(f"{self._access.model} sent no choices.")
        choice, usage = completion.choices[0], completion.usage
        if choice.finish_reason == "length":
            raise self._too_long()
        if choice.message.content is None:
            raise MissingVerdictError(f"{self._access.model} declined to judge: {choice.message.refusal!r:.200}.")
        tokens = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        return Reply(choice.message.content, *tokens)


class _Anthropic(Endpoint):
    """Messages with one tool, whose input is the verdict; the model has to call it."""

    _module, _client_class = "anthropic", "Anthropic"

    def _ask(self, instructions: str, message: str, schema: dict[str, Any]) -> Reply:
        reply: Any = self._client.messages.create(
            model=self._access.model,
            system=instructions,
            messages=[{"role": "user", "content": message}],
            max_tokens=self._access.max_tokens,
            tools=[{"name": "verdict", "description": "Records the verdict.", "input_schema": schema}],
            tool_choice={"type": "tool", "name": "verdict"},
            extra_body=dict(self._access.options),
        )
        if reply.stop_reason == "max_tokens":
            raise self._too_long()
        calls = [block for block in reply.content if block.type == "tool_use"]
        if len(calls) != 1:
            raise MissingVerdictError(f"{self._access.model} called the verdict tool {len(calls)} times, not once.")
        return Reply(json.dumps(calls[0].input), reply.usage.input_tokens, reply.usage.output_tokens)

"""The two wire formats that judges are asked in, through their vendors' own clients, which retry and back off."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from rotalabs_steer.errors import JudgeError, MissingVerdictError, OptionError, missing_dependency

if TYPE_CHECKING:
    from collections.abc import Mapping

_HOPELESS = (401, 403, 404)
"""Statuses that say the key, the model or the address is wrong: the next text would fare no better."""

_NO_KEY = "none"  # local servers ask for no key, but the clients insist on one


@dataclass(frozen=True)
class Reply:
    """A verdict as JSON text, and what it cost in tokens (0 where the endpoint does not say)."""

    verdict: str
    input_tokens: int
    output_tokens: int


class Endpoint(Protocol):
    """Something that answers a question in JSON."""

    def ask(self, instructions: str, message: str, schema: Mapping[str, Any]) -> Reply:
        """The verdict, not yet checked against the schema."""
        ...

    def close(self) -> None:
        """Closes the connections."""
        ...


@dataclass(frozen=True)
class Access:
    """How to reach a judge.

    Attributes:
        max_retries: further attempts after a connection error, a 408, 409, 429 or 5xx.
        options: further fields of every request, such as `{"temperature": 0, "seed": 0}` where the model takes them.
    """

    provider: str
    model: str
    api_key: str | None
    base_url: str | None
    max_tokens: int
    max_retries: int
    timeout: float
    options: Mapping[str, Any]


def open_endpoint(access: Access) -> Endpoint:
    """The endpoint for a provider.

    Raises:
        OptionError: the provider is unknown, or there is no key.
        MissingDependencyError: the provider's client is not installed.
    """
    if access.provider == "openai":
        return _OpenAI(access)
    if access.provider == "anthropic":
        return _Anthropic(access)
    raise OptionError(f"Unknown provider {access.provider!r}. Use 'openai' (any compatible endpoint) or 'anthropic'.")


class _OpenAI:
    """Chat completions with a JSON schema as the response format."""

    def __init__(self, access: Access) -> None:
        try:
            import openai
        except ImportError as error:
            raise missing_dependency("LLMJudge", "judge", error) from error
        self._access, self._errors = access, openai
        self._client = openai.OpenAI(
            api_key=_key(access, "OPENAI_API_KEY"),
            base_url=access.base_url,
            max_retries=access.max_retries,
            timeout=access.timeout,
        )

    def ask(self, instructions: str, message: str, schema: Mapping[str, Any]) -> Reply:
        """One chat completion."""
        try:
            completion: Any = self._client.chat.completions.create(
                model=self._access.model,
                messages=[{"role": "system", "content": instructions}, {"role": "user", "content": message}],
                max_completion_tokens=self._access.max_tokens,
                response_format={
                    "type": "json_schema",
                    "json_schema": {"name": "verdict", "strict": True, "schema": dict(schema)},
                },
                extra_body=dict(self._access.options),
            )
        except self._errors.APIError as error:
            raise _failure(self._access, error) from error
        if not completion.choices:
            raise MissingVerdictError(f"{self._access.model} sent no choices.")
        choice = completion.choices[0]
        if choice.finish_reason == "length":
            raise _too_long(self._access)
        if choice.message.content is None:
            raise MissingVerdictError(f"{self._access.model} declined to judge: {choice.message.refusal!r:.200}.")
        usage = completion.usage
        return Reply(
            choice.message.content, usage.prompt_tokens if usage else 0, usage.completion_tokens if usage else 0
        )

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()


class _Anthropic:
    """Messages with one tool, whose input is the verdict; the model has to call it."""

    def __init__(self, access: Access) -> None:
        try:
            import anthropic
        except ImportError as error:
            raise missing_dependency("LLMJudge", "judge", error) from error
        self._access, self._errors = access, anthropic
        self._client = anthropic.Anthropic(
            api_key=_key(access, "ANTHROPIC_API_KEY"),
            base_url=access.base_url,
            max_retries=access.max_retries,
            timeout=access.timeout,
        )

    def ask(self, instructions: str, message: str, schema: Mapping[str, Any]) -> Reply:
        """One message."""
        try:
            reply: Any = self._client.messages.create(
                model=self._access.model,
                system=instructions,
                messages=[{"role": "user", "content": message}],
                max_tokens=self._access.max_tokens,
                tools=[{"name": "verdict", "description": "Records the verdict.", "input_schema": dict(schema)}],
                tool_choice={"type": "tool", "name": "verdict"},
                extra_body=dict(self._access.options),
            )
        except self._errors.APIError as error:
            raise _failure(self._access, error) from error
        if reply.stop_reason == "max_tokens":
            raise _too_long(self._access)
        calls = [block for block in reply.content if block.type == "tool_use"]
        if len(calls) != 1:
            raise MissingVerdictError(f"{self._access.model} called the verdict tool {len(calls)} times, not once.")
        return Reply(json.dumps(calls[0].input), reply.usage.input_tokens, reply.usage.output_tokens)

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()


def _key(access: Access, variable: str) -> str:
    key = access.api_key or os.environ.get(variable)
    if key:
        return key
    if access.base_url is None:
        raise OptionError(f"No API key for {access.model!r}: pass api_key or set {variable}.")
    return _NO_KEY


def _failure(access: Access, error: Exception) -> JudgeError:
    status = getattr(error, "status_code", None)
    if status in _HOPELESS:
        return JudgeError(f"The judge {access.model!r} cannot be asked (status {status}): {error}")
    return MissingVerdictError(
        f"The judge {access.model!r} gave no verdict (retried up to {access.max_retries} times): {error}"
    )


def _too_long(access: Access) -> MissingVerdictError:
    return MissingVerdictError(
        f"{access.model} ran into max_tokens={access.max_tokens} before its verdict was complete. Raise max_tokens."
    )

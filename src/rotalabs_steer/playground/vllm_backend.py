"""A backend of the playground: a vLLM server that `rotalabs-steer serve` started."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from rotalabs_steer.errors import OptionError, ServerError, missing_dependency
from rotalabs_steer.playground.comparisons import Behavior, Snippets
from rotalabs_steer.playground.side_by_side import write_together
from rotalabs_steer.playground.snippets import (
    KEY_VARIABLE,
    client_snippet,
    curl_snippet,
    json_snippet,
    request_body,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from openai import OpenAI

    from rotalabs_steer.playground.comparisons import Request

_START = "rotalabs-steer serve MODEL --vectors FOLDER"
_PATIENCE = 60.0
"""Seconds without an answer after which a server counts as gone. One that shuts down keeps connections open."""


@dataclass(frozen=True, eq=False)
class VllmBackend:
    """A server that steers each request as the request says.

    Attributes:
        server: address with `/v1`.
        model: the name under which it serves the model.
        key: whether it needs a key.
    """

    server: str
    model: str
    behaviors: tuple[Behavior, ...]
    key: bool
    client: OpenAI

    @classmethod
    def connect(cls, address: str, api_key: str | None = None) -> VllmBackend:
        """Connects to a server and reads its model and behaviours.

        Args:
            address: with or without `/v1`.

        Raises:
            ServerError: nothing answers there, the key is refused, or the server does not steer.
            MissingDependencyError: the openai package is not installed.
        """
        try:
            from openai import OpenAI
        except ImportError as error:
            raise missing_dependency("Talking to a server", "playground", error) from error
        server = address.strip().rstrip("/").removesuffix("/v1") + "/v1"
        if not server.startswith(("http://", "https://")):
            raise OptionError(f"{address!r} is not the address of a server, as in http://127.0.0.1:8000.")
        client = OpenAI(base_url=server, api_key=api_key or "none", max_retries=0, timeout=_PATIENCE)
        return cls(server, *_offer(client), api_key is not None, client)

    @property
    def interventions(self) -> tuple[str, ...]:
        """Servers add vectors, and do nothing else with them."""
        return ("add",)

    def compare(self, request: Request) -> Generator[tuple[str, ...]]:
        """Yields both answers so far. Both requests run at once.

        Raises:
            ServerError: the server does not answer, or refuses a request.
        """
        _offer(self.client)  # a plain vLLM server in its place would ignore the steering without an error
        body = request_body(request, self.model)
        steering = body.pop("steering", None)
        return write_together(
            [partial(self._write, body, asked) for asked in ([None] if steering is None else [None, steering])]
        )

    def project(self, request: Request, unsteered: str, steered: str) -> None:
        """Returns None: a server does not give activations."""

    def snippets(self, request: Request) -> Snippets:
        """Python, JSON and curl for this server."""
        return Snippets(
            client_snippet(request, self.model, self.server, key=self.key),
            json_snippet(request, self.model),
            curl_snippet(request, self.model, self.server, key=self.key),
        )

    def _write(self, body: dict[str, Any], steering: Any, write: Callable[[str], None]) -> None:
        text, ended = "", None
        extra = None if steering is None else {"steering": steering}
        with (
            _explained(self.client),
            self.client.chat.completions.create(**body, extra_body=extra, stream=True) as chunks,
        ):
            for chunk in chunks:
                for choice in chunk.choices:
                    ended = choice.finish_reason
                    if choice.delta.content:
                        text += choice.delta.content
                        write(text)
        if ended not in ("stop", "length"):
            raise ServerError(f"The server at {self.server} broke off its answer ({ended}). Is it still running?")


def _offer(client: OpenAI) -> tuple[str, tuple[Behavior, ...]]:
    """The name of the server's model, and its behaviours."""
    with _explained(client):
        listed: Any = client.get("/steering", cast_to=object)
        model = next(iter(client.models.list())).id
    behaviors = tuple(
        Behavior(row["name"], tuple(row["safe_range"]) if row["safe_range"] else None, row.get("steers"))
        for row in listed["data"]
    )
    if not behaviors:
        raise ServerError(f"The server at {client.base_url} has no vectors. Start it with: {_START}")
    return model, behaviors


@contextmanager
def _explained(client: OpenAI) -> Iterator[None]:
    """Turns the client's errors into a sentence that says what to do."""
    import openai

    place = str(client.base_url).rstrip("/")
    try:
        yield
    except openai.APIConnectionError as error:
        raise ServerError(f"No server answers at {place}. Start one with: {_START}") from error
    except openai.AuthenticationError as error:
        raise ServerError(
            f"The server at {place} wants a key. Start the playground with the server's in {KEY_VARIABLE}."
        ) from error
    except openai.NotFoundError as error:
        raise ServerError(f"The server at {place} does not steer. Start one that does with: {_START}") from error
    except openai.APIError as error:
        said = error.body.get("message") if isinstance(error.body, dict) else None
        raise ServerError(f"The server at {place} refuses: {said or error.message}") from error

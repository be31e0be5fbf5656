"""Requests of the playground and their answers: plain data that every backend and the page share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from rotalabs_steer.errors import OptionError
from rotalabs_steer.steering.scopes import check_scope

if TYPE_CHECKING:
    from collections.abc import Generator

    from rotalabs_steer.measures.projected_text import ProjectedText

Projections = Mapping[str, "tuple[ProjectedText, ProjectedText]"]
"""By behaviour: the unsteered and the steered answer, with each token's projection on the behaviour's vector."""


@dataclass(frozen=True)
class Behavior:
    """A behaviour that can be steered.

    Attributes:
        safe_range: strengths within the coherence budget of a calibrated set; None for a raw set.
        steers: what tuning found; None for a set that was not tuned.
    """

    name: str
    safe_range: tuple[float, float] | None
    steers: bool | None = None


@dataclass(frozen=True)
class Request:
    """A prompt, how it is steered and how the answers are sampled; both are sampled with the same seed.

    Raises:
        OptionError: the prompt is empty, the scope is unknown or a number is out of range.
    """

    prompt: str
    strengths: Mapping[str, float]
    scope: str = "all"
    intervention: str = "add"
    max_new_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise OptionError("The prompt is empty. Write something for the model to answer.")
        check_scope(self.scope)
        if self.max_new_tokens < 1 or self.temperature < 0 or not 0 <= self.seed < 2**63:
            raise OptionError(
                "An answer needs at least 1 token, a temperature of at least 0 and a seed of at least 0; got "
                f"{self.max_new_tokens}, {self.temperature} and {self.seed}."
            )

    @property
    def acting(self) -> dict[str, float]:
        """The strengths that are not 0."""
        return {name: strength for name, strength in self.strengths.items() if strength}

    @property
    def strongest(self) -> str | None:
        """The behaviour that acts most, if one does."""
        return max(self.acting, key=lambda name: abs(self.acting[name]), default=None)

    @property
    def steering(self) -> str:
        """The strengths that act, in words."""
        return ", ".join(f"{name} {signed(strength)}" for name, strength in self.acting.items()) or "unsteered"

    @property
    def messages(self) -> list[dict[str, str]]:
        """The prompt as a chat."""
        return [{"role": "user", "content": self.prompt}]


@dataclass(frozen=True)
class Snippets:
    """The steered answer as programs to copy: Python, the body of a request as JSON, and curl."""

    python: str
    json: str
    curl: str


class Backend(Protocol):
    """A model and vectors that fit it."""

    @property
    def model(self) -> str:
        """Name or path of the model."""

    @property
    def behaviors(self) -> tuple[Behavior, ...]:
        """What can be steered."""

    @property
    def interventions(self) -> tuple[str, ...]:
        """What can be done with a vector."""

    def compare(self, request: Request) -> Generator[tuple[str, ...]]:
        """Yields the unsteered and the steered answer so far; the unsteered one alone where nothing steers."""

    def project(self, request: Request, unsteered: str, steered: str) -> Projections | None:
        """Projects both answers, as the unsteered model reads them; None where there are no activations."""

    def snippets(self, request: Request) -> Snippets:
        """Programs that give the steered answer."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """An answered request."""

    model: str
    request: Request
    unsteered: str
    steered: str
    projections: Projections | None
    snippets: Snippets

    def to_record(self) -> dict[str, Any]:
        """The comparison as JSON values, without projections."""
        asked = dataclasses.asdict(self.request) | {"strengths": self.request.acting}
        return {"model": self.model, **asked, "unsteered": self.unsteered, "steered": self.steered}


def signed(number: float) -> str:
    """A strength as people read it."""
    return f"{number:+g}".replace("-", "−") if number else "0"

"""The steering of one request: vectors to add at layers, and the positions to add them at.

It travels with the request from the API server to the scheduler and the workers, as plain data.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import astuple, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

EXTRA_ARG = "rotalabs_steer"
"""The name under which a resolved steering travels in `SamplingParams.extra_args`."""

_ENDLESS = 2**62


@dataclass(frozen=True, order=True)
class Addition:
    """A vector times a strength, added to the output of a layer. `digest` identifies the vector by its numbers."""

    layer: int
    behavior: str
    digest: str
    strength: float


@dataclass(frozen=True)
class Steering:
    """Additions sorted by layer, and one of `scopes.SCOPES`."""

    additions: tuple[Addition, ...]
    scope: str

    @cached_property
    def key(self) -> str:
        """Identifies the additions, regardless of their scope."""
        return hashlib.sha256(json.dumps(self._rows).encode()).hexdigest()[:32]

    def covered(self, prompt_tokens: int, start: int, stop: int) -> tuple[int, int]:
        """The part of the positions `start` to `stop - 1` that is steered, as a half-open range; it may be empty.

        Position 0 is the first token of the prompt. The result depends on the length of the prompt only, so it is the
        same for a prompt that runs in chunks and for a request that was preempted and runs again.
        """
        first, last = {
            "all": (0, _ENDLESS),
            "first": (0, 1),
            "prompt": (0, prompt_tokens),
            "last": (prompt_tokens - 1, _ENDLESS),
            "generated": (prompt_tokens - 1, _ENDLESS),
        }[self.scope]
        begin = min(max(start, first), stop)
        return begin, max(begin, min(stop, last))

    def document(self) -> dict[str, Any]:
        """The steering as plain data, which `from_document` reads."""
        return {"scope": self.scope, "additions": self._rows}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Steering:
        """Reads the result of `document`."""
        return cls(tuple(Addition(*row) for row in document["additions"]), document["scope"])

    @property
    def _rows(self) -> list[list[Any]]:
        return [list(astuple(addition)) for addition in self.additions]


def steering_of(sampling_params: Any) -> Steering | None:
    """The steering of a request in the engine; None for an unsteered request and for a pooling request."""
    document = (getattr(sampling_params, "extra_args", None) or {}).get(EXTRA_ARG)
    return None if document is None else Steering.from_document(document)


def running_vectors(requests: Iterable[Any]) -> list[str]:
    """The digests of all vectors that requests in the engine use."""
    steerings = [steering_of(request.sampling_params) for request in requests]
    return sorted({addition.digest for found in steerings if found is not None for addition in found.additions})

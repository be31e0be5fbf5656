"""What is added to a request's activations: additions at layers, and the positions they cover.

It travels with the request from the API server to scheduler and workers, as plain data.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

EXTRA_ARG = "rotalabs_steer"
"""The name under which a resolved steering travels in `SamplingParams.extra_args`."""

_ENDLESS = 2**62


@dataclass(frozen=True, order=True)
class Addition:
    """A vector, told by the digest of its numbers, times a strength, at the output of a layer."""

    layer: int
    behavior: str
    digest: str
    strength: float


@dataclass(frozen=True)
class Steering:
    """Additions in order of their layers, and their scope, as in `positions.SCOPES`."""

    additions: tuple[Addition, ...]
    scope: str

    @cached_property
    def key(self) -> str:
        """What tells these additions from all others, wherever they act."""
        rows = [[a.layer, a.behavior, a.digest, a.strength] for a in self.additions]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:32]

    def covered(self, prompt_tokens: int, start: int, stop: int) -> tuple[int, int]:
        """Which positions of `start` to `stop - 1` are steered: from the first to below the second; none if equal.

        Positions are those of `positions.py`: of the tokens of a row, prompt first. Computed from the length of the
        prompt alone, they are the same for chunked prompts and for a request that was preempted and runs again.
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
        """As plain data; `from_document` reads it."""
        return {"scope": self.scope, "additions": [[a.layer, a.behavior, a.digest, a.strength] for a in self.additions]}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Steering:
        """What `document` wrote."""
        return cls(tuple(Addition(*row) for row in document["additions"]), document["scope"])


def steering_of(sampling_params: Any) -> Steering | None:
    """The steering of a request in the engine, None for an unsteered or a pooling request."""
    document = (getattr(sampling_params, "extra_args", None) or {}).get(EXTRA_ARG)
    return None if document is None else Steering.from_document(document)


def running_vectors(requests: Iterable[Any]) -> list[str]:
    """The digests of all vectors that requests in the engine use."""
    steerings = [steering_of(request.sampling_params) for request in requests]
    return sorted({addition.digest for found in steerings if found is not None for addition in found.additions})

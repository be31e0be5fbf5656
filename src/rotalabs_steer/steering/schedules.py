"""Schedules: how the strength changes as generation goes on.

A schedule gives a factor of the strength for each token index. Index 0 is the last prompt token, from which the first
generated token is computed; index k is the k-th generated token. Earlier prompt tokens have the factor of index 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from rotalabs_steer.arguments import as_integer
from rotalabs_steer.errors import OptionError

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float, Int


class Schedule(Protocol):
    """The factor of the strength for each token."""

    def __call__(self, index: Int[torch.Tensor, " seq"]) -> Float[torch.Tensor, " seq"]:
        """A finite factor for each token index."""
        ...


@dataclass(frozen=True)
class StopAfter:
    """Full strength for the first `tokens` generated tokens, none afterwards."""

    tokens: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", _check_count(self.tokens))

    def __call__(self, index: Int[torch.Tensor, " seq"]) -> Float[torch.Tensor, " seq"]:
        """1 below `tokens`, else 0."""
        return (index < self.tokens).float()


@dataclass(frozen=True)
class LinearDecay:
    """Full strength at first, which falls to zero in even steps over `tokens` generated tokens."""

    tokens: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", _check_count(self.tokens))

    def __call__(self, index: Int[torch.Tensor, " seq"]) -> Float[torch.Tensor, " seq"]:
        """`1 − index / tokens`, not below 0."""
        return (1.0 - index.float() / self.tokens).clamp_min(0.0)


def _check_count(tokens: int) -> int:
    count = as_integer(tokens)
    if count is None or count < 1:
        raise OptionError(f"A schedule runs over a number of tokens from 1 on, got {tokens!r}.")
    return count

"""Strength as a function of how far generation has come.

A schedule gives the factor of the strength for a token by its index: 0 is the last prompt token, which the first
generated token comes from; k is the k-th generated token. Earlier prompt tokens have the factor of index 0.
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
        """Factors for token indices, 0 and up."""
        ...


@dataclass(frozen=True)
class StopAfter:
    """Full strength for the tokens that `tokens` generated tokens come from, nothing afterwards."""

    tokens: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", _check_count(self.tokens))

    def __call__(self, index: Int[torch.Tensor, " seq"]) -> Float[torch.Tensor, " seq"]:
        """1 below `tokens`, else 0."""
        return (index < self.tokens).float()


@dataclass(frozen=True)
class LinearDecay:
    """From full strength down to nothing in even steps over `tokens` generated tokens."""

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

"""What is done to an activation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float


class Intervention(Protocol):
    """A function of the residual stream with a strength. Strength 0 leaves it as it is."""

    @property
    def dim(self) -> int:
        """Hidden size it is made for."""
        ...


@dataclass(frozen=True, eq=False)
class Add:
    """`hidden + strength · vector` (activation addition; Rimsky et al. 2024, arXiv:2312.06681)."""

    vector: Float[torch.Tensor, " hidden"]

    @property
    def dim(self) -> int:
        """Hidden size it is made for."""
        return self.vector.shape[0]

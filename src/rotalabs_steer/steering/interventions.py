"""Interventions: what steering does to the hidden state.

Each is a function of the hidden state and of a strength, which may differ from token to token; `steering.strengths`
says what the numbers mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

import torch

from rotalabs_steer.arguments import as_real
from rotalabs_steer.errors import OptionError, VectorError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jaxtyping import Float

_TINY = 1e-12


class Intervention(Protocol):
    """A function of the residual stream and a strength."""

    @property
    def vector(self) -> Float[torch.Tensor, " hidden"]:
        """The vector to add, or the direction to act along, in fp32."""
        ...

    def __call__(
        self, hidden: Float[torch.Tensor, "batch seq hidden"], strength: Float[torch.Tensor, "#batch #seq 1"]
    ) -> Float[torch.Tensor, "batch seq hidden"]:
        """The hidden state after the intervention, in fp32."""
        ...


@dataclass(frozen=True, eq=False)
class Add:
    """`hidden + strength · vector` (activation addition; Rimsky et al. 2024, arXiv:2312.06681)."""

    vector: Float[torch.Tensor, " hidden"]

    def __call__(self, hidden: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
        """Adds the vector."""
        return hidden + strength * self.vector


@dataclass(frozen=True, eq=False)
class AddKeepingNorm:
    """Addition after which every token has the norm it had before: it turns the token and does not lengthen it."""

    vector: Float[torch.Tensor, " hidden"]

    def __call__(self, hidden: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
        """Adds the vector, then restores the norm."""
        moved = hidden + strength * self.vector
        return moved * (_norm(hidden) / _norm(moved).clamp_min(_TINY))


@dataclass(frozen=True, eq=False)
class Ablate:
    """Removes the direction of the vector: `hidden − strength · (hidden · d) d`, d the unit vector.

    At strength 1 nothing is left along d (Arditi et al. 2024, arXiv:2406.11717); at −1 the component along d doubles.
    """

    vector: Float[torch.Tensor, " hidden"]

    def __post_init__(self) -> None:
        _check_direction(self.vector)

    def __call__(self, hidden: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
        """Subtracts the component along the direction."""
        direction = _unit(self.vector)
        return hidden - strength * (hidden @ direction).unsqueeze(-1) * direction


@dataclass(frozen=True, eq=False)
class Clamp:
    """Sets the projection on the direction: `hidden + strength · (value − hidden · d) d`, d the unit vector.

    At strength 1 every token's projection is `value`, in the units of the residual stream.
    """

    vector: Float[torch.Tensor, " hidden"]
    value: float = 0.0

    def __post_init__(self) -> None:
        _check_direction(self.vector)
        _check_finite("value", self.value)

    def __call__(self, hidden: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
        """Moves the hidden state along the direction."""
        direction = _unit(self.vector)
        return hidden + strength * (self.value - (hidden @ direction).unsqueeze(-1)) * direction


@dataclass(frozen=True, eq=False)
class Rotate:
    """Turns the hidden state towards the direction by `strength · angle` radians, within the plane of both.

    The norm stays. A token is never turned past the direction, nor past its opposite at negative strength (after
    angular steering; Vu and Nguyen 2025, arXiv:2510.26243, who fix the plane for all tokens).
    """

    vector: Float[torch.Tensor, " hidden"]
    angle: float = torch.pi / 8

    def __post_init__(self) -> None:
        _check_direction(self.vector)
        _check_finite("angle", self.angle)

    def __call__(self, hidden: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
        """Rotates the hidden state."""
        direction = _unit(self.vector)
        along = (hidden @ direction).unsqueeze(-1)
        across = hidden - along * direction
        angle = torch.atan2(_norm(across), along)  # between token and direction, 0 to pi
        turned = (angle - strength * self.angle).clamp(0.0, torch.pi)
        sideways = across / _norm(across).clamp_min(_TINY)
        rotated = _norm(hidden) * (turned.cos() * direction + turned.sin() * sideways)
        return torch.where(strength == 0, hidden, rotated)  # rotating by zero would still round


INTERVENTIONS: Mapping[str, Callable[[torch.Tensor], Intervention]] = {
    "add": Add,
    "add_keeping_norm": AddKeepingNorm,
    "ablate": Ablate,
    "clamp": Clamp,
    "rotate": Rotate,
}


def make_intervention(
    kind: str | Callable[[torch.Tensor], Intervention], vector: Float[torch.Tensor, " hidden"]
) -> Intervention:
    """Makes an intervention from a vector, by name or by a callable such as `lambda v: Clamp(v, value=3.0)`.

    A vector that requires gradients is kept as it is, so that an optimiser can train it through the steered model.

    Raises:
        OptionError: the name is unknown, or the callable does not make an intervention.
    """
    if isinstance(kind, str):
        if kind not in INTERVENTIONS:
            raise OptionError(f"Unknown intervention {kind!r}. Use one of: {', '.join(INTERVENTIONS)}, or a callable.")
        kind = INTERVENTIONS[kind]
    if not callable(kind):
        raise OptionError(f"intervention is {kind!r:.80}; use one of {', '.join(INTERVENTIONS)}, or a callable.")
    made: object = kind(vector if vector.requires_grad else vector.detach().float())
    if not callable(made) or not isinstance(getattr(made, "vector", None), torch.Tensor):
        raise OptionError(
            f"The intervention that was made is {made!r:.80}; it must be callable and have its vector as `.vector`, as "
            "Clamp(vector, value=3.0) is."
        )
    return cast("Intervention", made)


def _unit(vector: torch.Tensor) -> torch.Tensor:
    length: torch.Tensor = vector.float().norm()
    return vector.float() / length


def _norm(hidden: torch.Tensor) -> torch.Tensor:
    norm: torch.Tensor = hidden.norm(dim=-1, keepdim=True)
    return norm


def _check_direction(vector: torch.Tensor) -> None:
    if not bool(vector.any()):
        raise VectorError("The vector is zero, so it has no direction to ablate, clamp or rotate towards.")


def _check_finite(name: str, number: object) -> None:
    if as_real(number) is None:
        raise OptionError(f"{name} is {number!r:.80}; it must be a finite number.")

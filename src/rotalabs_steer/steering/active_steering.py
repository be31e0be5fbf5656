"""`steering_of(model)`, which shows what steers a model now and can remove it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rotalabs_steer.steering.attachment import Attachment, SteeredDecoder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from rotalabs_steer.steering.scopes import Scope
    from rotalabs_steer.steering.strengths import Strength


@dataclass(frozen=True)
class ActiveVector:
    """One vector that acts on a model.

    Attributes:
        thread: the name of the thread whose calls it steers; None where it steers every caller.
    """

    behavior: str
    layer_index: int
    strength: Strength
    scope: Scope
    intervention: str
    thread: str | None


class ActiveSteering:
    """The vectors that steered a model when this was made. It is iterable, and false if there are none."""

    def __init__(self, attachments: tuple[Attachment, ...]) -> None:
        self._attachments = attachments
        self.vectors = [
            ActiveVector(
                item.behavior,
                item.layer_index,
                item.strength,
                item.scope,
                type(item.intervention).__name__,
                attachment.owner.thread.name if attachment.scoped else None,
            )
            for attachment in attachments
            for item in attachment.plan
        ]

    def clear(self) -> None:
        """Removes all of it from the model, whoever attached it and in whatever thread."""
        for attachment in self._attachments:
            attachment.remove()

    def __iter__(self) -> Iterator[ActiveVector]:
        return iter(self.vectors)

    def __len__(self) -> int:
        return len(self.vectors)

    def __repr__(self) -> str:
        if not self.vectors:
            return "Nothing steers this model."
        return "\n".join(
            f"{one.behavior}: layer {one.layer_index}, strength {one.strength}, scope {one.scope!r}, "
            f"{one.intervention}, {'every caller' if one.thread is None else f'only thread {one.thread!r}'}"
            for one in self.vectors
        )


def steering_of(model: nn.Module) -> ActiveSteering:
    """What steers a model now, for every caller and for single threads.

    Example:
        >>> steering_of(model)  # doctest: +SKIP
        formality: layer 16, strength 1.0, scope 'all', Add, every caller
        >>> steering_of(model).clear()  # doctest: +SKIP
    """
    return ActiveSteering(SteeredDecoder.of(model).attachments())

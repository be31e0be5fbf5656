"""Texts whose tokens are coloured by their projection on a vector, on one scale for all that are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rotalabs_steer.evaluation.detection import ProjectedText

_MORE, _LESS = "230, 97, 1", "94, 60, 153"  # the ends of the figures' colour scale
_DEEPEST = 0.55
"""Opacity of the strongest token's colour: dark letters on it keep a contrast above 4.5."""


@dataclass(frozen=True)
class Token:
    """A piece of a text, and the colour behind it as CSS."""

    text: str
    color: str
    score: float


@dataclass(frozen=True)
class ColorScale:
    """What has no colour, and how far from it the colour is deepest."""

    neutral: float
    width: float

    @classmethod
    def of(cls, unsteered: Sequence[ProjectedText], steered: Sequence[ProjectedText], vector: int = 0) -> ColorScale:
        """Neutral is the mean of the unsteered tokens: projections have no zero of their own.

        Args:
            vector: row of the scores that counts.
        """
        base, moved = (
            [score for text in texts for score in text.scores[vector, text.start :].tolist()]
            for texts in (unsteered, steered)
        )
        neutral = sum(base) / max(len(base), 1)
        distances = sorted(abs(score - neutral) for score in (*base, *moved))
        width = distances[int(0.95 * (len(distances) - 1))] if distances else 1.0
        return cls(neutral, width or 1.0)

    def color_tokens(self, text: ProjectedText, vector: int = 0) -> list[Token]:
        """The text as coloured pieces, all its characters in some piece. Tokens that do not count have no colour."""
        pieces, done = [], 0
        for number, ((_, end), score) in enumerate(zip(text.offsets, text.scores[vector].tolist(), strict=True)):
            if end > done:  # special tokens have no characters; bytes of one character share them
                relative = (score - self.neutral) / self.width if number >= text.start else 0.0
                pieces.append(Token(text.text[done:end], color_of(relative), relative))
                done = end
        return [*pieces, Token(text.text[done:], "transparent", 0.0)] if done < len(text.text) else pieces


def color_of(relative: float) -> str:
    """CSS for a place on the scale: −1 and below is deepest one way, 1 and above the other."""
    opacity = min(abs(relative), 1.0) * _DEEPEST
    return f"rgba({_MORE if relative > 0 else _LESS}, {opacity:.2f})"

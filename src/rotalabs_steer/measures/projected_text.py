"""Texts and the projections of their tokens on vectors, shown as colours on one scale for all that are compared."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import torch  # noqa: TC002 - a record's hints are read at run time

if TYPE_CHECKING:
    from collections.abc import Sequence

_MORE, _LESS = "230, 97, 1", "94, 60, 153"  # the ends of the figures' colour scale
_DEEPEST = 0.55
"""Opacity of the strongest token's colour: dark letters on it keep a contrast above 4.5."""


@dataclass(frozen=True, eq=False, repr=False)
class ProjectedText:
    """A text seen by some vectors.

    Attributes:
        tokens: the text's tokens as they read; a special token by its name.
        offsets: first and one past the last character of each token in the text; (0, 0) for a special token.
        scores: `[vectors, tokens]`: projections.
        text_scores: `[vectors]`: means over the tokens that count.
        start: the first token that counts: 1 where it is a sequence's first that does not, else 0.
    """

    text: str
    tokens: tuple[str, ...]
    offsets: tuple[tuple[int, int], ...]
    scores: torch.Tensor
    text_scores: torch.Tensor
    start: int = 0

    def __repr__(self) -> str:
        scores = ", ".join(f"{score:.3g}" for score in self.text_scores.tolist())
        return f"ProjectedText({self.text!r}, scores {scores})"

    def _repr_html_(self) -> str:
        """What a notebook shows: the text, its tokens coloured by the first vector against the score of the text."""
        distances = (self.scores[0, self.start :] - self.text_scores[0]).abs()
        width = float(distances.quantile(0.9, interpolation="lower"))
        pieces = ColorScale(float(self.text_scores[0]), width or 1.0).color_tokens(self)
        spans = (f'<span style="background: {piece.color}">{escape(piece.text)}</span>' for piece in pieces)
        return f'<p style="white-space: pre-wrap; line-height: 1.7">{"".join(spans)}</p>'


@dataclass(frozen=True)
class Token:
    """A piece of a text, and the colour behind it as CSS."""

    text: str
    color: str
    score: float


@dataclass(frozen=True)
class ColorScale:
    """A colour scale: `neutral` is the uncoloured score, `width` the distance at which the colour is strongest."""

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

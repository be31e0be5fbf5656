"""Texts with the projections of their tokens on vectors, and a colour scale that shows the projections."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import torch  # noqa: TC002 - a record's hints are read at run time

if TYPE_CHECKING:
    from collections.abc import Sequence

_MORE, _LESS = "230, 97, 1", "94, 60, 153"  # the ends of the colour scale of `plots.DIVERGING`
_MOST_OPACITY = 0.55
"""Dark letters on the strongest colour still have a contrast above 4.5."""


@dataclass(frozen=True, eq=False, repr=False)
class ProjectedText:
    """A text with the projections of its tokens on some vectors.

    Attributes:
        tokens: the text of each token, or the name of a special token.
        offsets: for each token, the index of its first character in the text and one past that of its last character;
            (0, 0) for a special token.
        scores: `[vectors, tokens]`: the projections.
        text_scores: `[vectors]`: the mean projection of the tokens that count.
        start: the index of the first token that counts: 1 where token 0 begins a sequence, else 0.
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
        """The text with its tokens coloured by the first vector, as a notebook shows it."""
        distances = (self.scores[0, self.start :] - self.text_scores[0]).abs()
        width = float(distances.quantile(0.9, interpolation="lower"))  # single tokens far out do not pale the others
        pieces = ColorScale(float(self.text_scores[0]), width or 1.0).color_tokens(self)
        spans = (f'<span style="background: {piece.color}">{escape(piece.text)}</span>' for piece in pieces)
        return f'<p style="white-space: pre-wrap; line-height: 1.7">{"".join(spans)}</p>'


@dataclass(frozen=True)
class Token:
    """A piece of a text, the colour behind it as CSS, and its place on the colour scale."""

    text: str
    color: str
    score: float


@dataclass(frozen=True)
class ColorScale:
    """A colour scale: `neutral` is the score without colour, `width` the distance at which the colour is strongest."""

    neutral: float
    width: float

    @classmethod
    def of(cls, unsteered: Sequence[ProjectedText], steered: Sequence[ProjectedText]) -> ColorScale:
        """One scale for texts that are compared, by the first vector of each.

        Neutral is the mean of the unsteered tokens, because the zero of a projection means nothing by itself.
        """
        base, moved = (
            [score for text in texts for score in text.scores[0, text.start :].tolist()]
            for texts in (unsteered, steered)
        )
        neutral = sum(base) / max(len(base), 1)
        distances = sorted(abs(score - neutral) for score in (*base, *moved))
        width = distances[int(0.95 * (len(distances) - 1))] if distances else 1.0
        return cls(neutral, width or 1.0)

    def color_tokens(self, text: ProjectedText) -> list[Token]:
        """The text as coloured pieces, all its characters in some piece. Tokens that do not count have no colour."""
        pieces, done = [], 0
        for number, ((_, end), score) in enumerate(zip(text.offsets, text.scores[0].tolist(), strict=True)):
            if end > done:  # a special token has no characters, and the bytes of one character have the same ones
                relative = (score - self.neutral) / self.width if number >= text.start else 0.0
                pieces.append(Token(text.text[done:end], color_of(relative), relative))
                done = end
        return [*pieces, Token(text.text[done:], "transparent", 0.0)] if done < len(text.text) else pieces


def color_of(relative: float) -> str:
    """The CSS colour of a place on the scale. It is strongest at −1 and below, and at 1 and above."""
    opacity = min(abs(relative), 1.0) * _MOST_OPACITY
    return f"rgba({_MORE if relative > 0 else _LESS}, {opacity:.2f})"

"""Whether the answers of a steered model are still whole.

The cost on neutral text (`CoherenceProbe`) does not see that an answer says one thing again and again. So the answers
themselves are looked at: a broken answer repeats itself or says nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rotalabs_steer.measures.text_statistics import distinct_share, words_of

if TYPE_CHECKING:
    from collections.abc import Sequence

LEAST_DISTINCT = 0.7
"""The smallest share of different word pairs in a whole answer. Prose of 40 words has 0.9 to 1."""

MOST_REPEATED = 0.2
"""The largest share of four-word sequences in a whole answer that occurred earlier in it."""

_FEW_WORDS = 8  # "No, no, no!" is an answer


def is_broken(answer: str) -> bool:
    """Whether an answer repeats itself or says nothing. An answer that is too short to repeat itself is whole."""
    words = words_of(answer)
    if len(words) < _FEW_WORDS:
        return not words
    pairs, fours = distinct_share([words], 2), distinct_share([words], 4)
    return (pairs or 0.0) < LEAST_DISTINCT or 1 - (fours or 0.0) > MOST_REPEATED


def share_broken(answers: Sequence[str]) -> float:
    """The share of broken answers."""
    return sum(map(is_broken, answers)) / len(answers)

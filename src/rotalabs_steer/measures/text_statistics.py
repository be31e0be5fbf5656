"""What can be said of texts without a model: how long they are and how much they repeat themselves.

These are no measure of coherence. Salad of rare words repeats nothing and scores as well as good prose; the cost in KL
(`CoherenceProbe`) tells them apart. What they do show is the loop that too much steering ends in.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_WORD = re.compile(r"\w+(?:['’]\w+)*")


@dataclass(frozen=True)
class TextMeasures:
    """Measures of some texts. A share that no text is long enough for is None.

    Attributes:
        words: mean number of words.
        empty: share of texts without a word.
        distinct_1, distinct_2: different words (word pairs) over all of them, pooled over the texts: low where the
            texts say the same (Li et al. 2016, arXiv:1510.03055).
        repetition: mean over texts of the share of its four-word sequences that occurred in it before: high where a
            text goes round in circles (Welleck et al. 2020, arXiv:1908.04319).
    """

    words: float
    empty: float
    distinct_1: float | None
    distinct_2: float | None
    repetition: float | None


def measure_texts(texts: Sequence[str]) -> TextMeasures | None:
    """Length and repetition of texts; None where there are no texts."""
    if not texts:
        return None
    split = [_WORD.findall(text.lower()) for text in texts]
    repetitions = [share for words in split if (share := repetition(words)) is not None]
    return TextMeasures(
        words=sum(map(len, split)) / len(split),
        empty=sum(not words for words in split) / len(split),
        distinct_1=_distinct(split, 1),
        distinct_2=_distinct(split, 2),
        repetition=sum(repetitions) / len(repetitions) if repetitions else None,
    )


def repetition(words: Sequence[str], size: int = 4) -> float | None:
    """The share of a text's word sequences of this size that occurred in it before; None for a shorter text."""
    sequences = _sequences(words, size)
    return 1 - len(set(sequences)) / len(sequences) if sequences else None


def _distinct(texts: Sequence[Sequence[str]], size: int) -> float | None:
    sequences = [sequence for words in texts for sequence in _sequences(words, size)]
    return len(set(sequences)) / len(sequences) if sequences else None


def _sequences(words: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]

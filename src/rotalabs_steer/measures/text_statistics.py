"""What can be measured of texts without a model: how long they are and how much they repeat themselves.

These numbers do not measure coherence. Random rare words repeat nothing and score as well as good prose; the cost in KL
(`CoherenceProbe`) tells the two apart. What the numbers do show are the loops that too much steering ends in.
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
    """Measures of some texts. A share is None where no text is long enough for it.

    Attributes:
        words: the mean number of words.
        empty: the share of texts without a word.
        distinct_1, distinct_2: the number of different words (word pairs) divided by the number of all of them, pooled
            over the texts. It is low where the texts say the same (Li et al. 2016, arXiv:1510.03055).
        repetition: the share of a text's four-word sequences that occurred earlier in the text, mean over texts. It is
            high where texts go round in circles (Welleck et al. 2020, arXiv:1908.04319).
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
    split = [words_of(text) for text in texts]
    repetitions = [1 - share for words in split if (share := distinct_share([words], 4)) is not None]
    return TextMeasures(
        words=sum(map(len, split)) / len(split),
        empty=sum(not words for words in split) / len(split),
        distinct_1=distinct_share(split, 1),
        distinct_2=distinct_share(split, 2),
        repetition=sum(repetitions) / len(repetitions) if repetitions else None,
    )


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case and without punctuation."""
    return _WORD.findall(text.lower())


def distinct_share(texts: Sequence[Sequence[str]], size: int) -> float | None:
    """The number of different sequences of `size` words divided by the number of all; None where there are none."""
    sequences = [tuple(words[start : start + size]) for words in texts for start in range(len(words) - size + 1)]
    return len(set(sequences)) / len(sequences) if sequences else None

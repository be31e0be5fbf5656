"""Judges of generated text that count words and phrases. They know neither the vectors nor the pairs.

Each returns a number that grows with the behaviour. They are crude, but the same for every method that is compared.
"""

from __future__ import annotations

import math
import re
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_REFUSES = re.compile(
    r"\b(i can'?t|i cannot|i can not|i'm sorry|i am sorry|i'm unable|i am unable|i won't|i'm not able|unable to"
    r"|i'm afraid|i regret|unfortunately|i must decline|not comfortable|(can't|cannot) (help|assist))\b"
)
_OPENING = 160  # characters; a refusal comes at the beginning of an answer
_CASUAL = re.compile(
    r"hey|yeah|yep|nope|okay|ok|gonna|wanna|kinda|stuff|things|guys|folks|totally|super|pretty|really|just|lots|awesome"
    r"|cool|get|got|grab|gotta|big|nice"
)
_HEDGES = re.compile(
    r"may|might|could|perhaps|possibly|likely|probably|usually|often|generally|sometimes|depends|uncertain|unsure|seems"
    r"|appears?|suggests?|approximately|about|around|roughly|unclear|varies|vary|estimated?"
)
_FEELS = re.compile(
    r"sorry|understand|i hear|must be|must feel|feel|difficult|hard|tough|here for you|hope|glad|proud|care"
)
_FIRM = re.compile(r"\b(must|should|need to|definitely|absolutely|never|always|will|clearly)\b")
_TIMID = re.compile(r"\b(maybe|perhaps|might|could|may|possibly|if you|i think|i guess|i suppose|sorry|not sure)\b")


def refuses(text: str) -> float:
    """1 if the answer opens with a phrase of refusal, else 0."""
    return float(bool(_REFUSES.search(_plain(text)[:_OPENING])))


def formality(text: str) -> float:
    """Grows with the length of words, and falls with contractions, casual words and exclamation marks."""
    words = _words(text)
    casual = sum(_CASUAL.fullmatch(word) is not None or ("'" in word and not word.endswith("'s")) for word in words)
    length = sum(map(len, words)) / len(words)
    return 8 * (length - 4.7) - 100 * (casual + text.count("!")) / len(words)


def hedging(text: str) -> float:
    """Words of doubt per hundred words."""
    words = _words(text)
    return 100 * sum(_HEDGES.fullmatch(word) is not None for word in words) / len(words)


def empathy(text: str) -> float:
    """Phrases that acknowledge feelings per hundred words."""
    return 100 * len(_FEELS.findall(_plain(text))) / len(_words(text))


def word_length(text: str) -> float:
    """Mean number of letters in a word."""
    words = _words(text)
    return sum(map(len, words)) / len(words)


def brevity(text: str) -> float:
    """Minus the logarithm of the number of words."""
    return -math.log(len(_words(text)))


def assertiveness(text: str) -> float:
    """Firm phrases minus timid ones, per hundred words."""
    plain = _plain(text)
    return 100 * (len(_FIRM.findall(plain)) - len(_TIMID.findall(plain))) / len(_words(text))


def sentiment(text: str) -> float:
    """VADER's compound score (Hutto and Gilbert 2014)."""
    return float(_vader().polarity_scores(text)["compound"])


JUDGES: dict[str, Callable[[str], float]] = {
    "refusal": refuses,
    "formality": formality,
    "uncertainty": hedging,
    "empathy": empathy,
    "technical_depth": word_length,
    "conciseness": brevity,
    "assertiveness": assertiveness,
    "sentiment": sentiment,
    "refusal_train": refuses,
}


@cache
def _vader() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def _plain(text: str) -> str:
    return text.lower().replace("’", "'")


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", _plain(text)) or ["-"]

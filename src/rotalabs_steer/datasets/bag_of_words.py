"""Whether single words give away which side of a pair a response is.

A logistic regression on word counts is trained on some pairs and asked about others. What it gets right beyond one
half, after the behaviour's own words are removed, a steering vector may have learnt instead of the behaviour.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rotalabs_steer.errors import missing_dependency
from rotalabs_steer.intervals import wilson_interval

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from rotalabs_steer.datasets.pairs import ContrastPair

_TOKEN = r"\w+(?:'\w+)*|[!?]"
_FEWEST_PAIRS = 10
_MOST_PAIRS = 2000
"""Of a larger dataset a sample is measured; the interval is then within 2.2 percentage points."""
_FOLDS = 5
_TELLING_WORDS = 8
_SUREST = 5


@dataclass(frozen=True)
class BagOfWords:
    """How often a bag of words tells the sides apart: 0.5 is chance.

    Attributes:
        accuracy, low, high: over the tested responses, with a 95 % interval (Wilson) that counts a pair once.
        trained_pairs, tested_pairs: numbers of pairs; in cross-validation every pair is tested.
        method: how training and tested pairs were kept apart.
        positive_words, negative_words: those with the largest weights for either side.
        surest: indices of the pairs it is most sure about, of those it gets right.
    """

    accuracy: float
    low: float
    high: float
    trained_pairs: int
    tested_pairs: int
    method: str
    positive_words: tuple[str, ...]
    negative_words: tuple[str, ...]
    surest: tuple[int, ...]


def measure_bag_of_words(pairs: Sequence[ContrastPair], markers: Sequence[str] = ()) -> BagOfWords | None:
    """The measurement, or None where there are fewer than ten pairs.

    Trains on the split "train" and tests on "test" where the metadata of the pairs name these; else five-fold
    cross-validation that keeps a category together, or a pair where there are no categories.

    Args:
        markers: words and phrases removed first. In a marker, `*` stands for any letters: `*n't` is all words with n't.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    try:
        from sklearn.feature_extraction.text import CountVectorizer  # type: ignore[import-untyped]
        from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
        from sklearn.model_selection import GroupKFold  # type: ignore[import-untyped]
    except ImportError as error:
        raise missing_dependency("Checking a dataset", "quality", error) from error

    method, folds = _folds(pairs, GroupKFold)
    if not folds:
        return None
    pattern = _marker_pattern(markers)

    def fit(indices: Sequence[int]) -> tuple[Any, Any]:
        vectorizer = CountVectorizer(token_pattern=_TOKEN)
        counts = vectorizer.fit_transform(_texts(pairs, indices, pattern))
        return vectorizer, LogisticRegression(max_iter=2000).fit(counts, [1, 0] * len(indices))

    tested: list[int] = []
    scores: list[NDArray[np.float64]] = []
    for training, testing in folds:
        vectorizer, classifier = fit(training)
        scores.append(classifier.decision_function(vectorizer.transform(_texts(pairs, testing, pattern))))
        tested.extend(testing)
    if len(folds) > 1:
        training = sorted(tested)
        vectorizer, classifier = fit(training)
    score = np.concatenate(scores).reshape(-1, 2)  # [pair, side]
    right = np.stack([score[:, 0] > 0, score[:, 1] <= 0])
    accuracy = float(right.mean())
    interval = wilson_interval(accuracy * len(tested), len(tested))
    words = vectorizer.get_feature_names_out()[np.argsort(classifier.coef_[0])].tolist()
    margin = np.where(right.all(axis=0), score[:, 0] - score[:, 1], -np.inf)
    surest = [tested[index] for index in np.argsort(-margin)[:_SUREST] if np.isfinite(margin[index])]
    assert interval.low is not None
    assert interval.high is not None
    return BagOfWords(
        accuracy, interval.low, interval.high, len(training), len(tested), method,
        tuple(words[::-1][:_TELLING_WORDS]), tuple(words[:_TELLING_WORDS]), tuple(sorted(surest)),
    )  # fmt: skip


def _folds(pairs: Sequence[ContrastPair], group_folds: Any) -> tuple[str, list[tuple[list[int], list[int]]]]:
    """What keeps training and tested pairs apart, and the indices of either for every fold."""
    measured = [index for index, pair in enumerate(pairs) if pair.positive.strip() != pair.negative.strip()]
    splits = {
        name: _sample([index for index in measured if pairs[index].metadata.get("split") == name])
        for name in ("train", "test")
    }
    if all(splits.values()) and len(splits["train"]) + len(splits["test"]) >= _FEWEST_PAIRS:
        return "trained on the train split, tested on the test split", [(splits["train"], splits["test"])]
    measured = _sample(measured)
    if len(measured) < _FEWEST_PAIRS:
        return "", []
    categories = [pairs[index].category for index in measured]
    if all(categories) and len(set(categories)) > 1:
        groups, unit = categories, "category"
    else:
        groups, unit = [str(index) for index in measured], "pair"
    count = min(_FOLDS, len(set(groups)))
    parts = group_folds(count).split(measured, groups=groups)
    folds = [([measured[i] for i in training], [measured[i] for i in testing]) for training, testing in parts]
    return f"{count}-fold cross-validation by {unit}", folds


def _sample(indices: list[int]) -> list[int]:
    """At most `_MOST_PAIRS` of the indices, by chance but always the same: every nth row may be all of one kind."""
    if len(indices) <= _MOST_PAIRS:
        return indices
    return sorted(random.Random(0).sample(indices, _MOST_PAIRS))


def _texts(pairs: Sequence[ContrastPair], indices: Sequence[int], pattern: re.Pattern[str] | None) -> Iterator[str]:
    for index in indices:
        for text in (pairs[index].positive, pairs[index].negative):
            plain = _plain(text)
            yield plain if pattern is None else pattern.sub(" ", plain)


def _marker_pattern(markers: Sequence[str]) -> re.Pattern[str] | None:
    """Matches any marker as whole words, the longest first."""
    ordered = sorted({_plain(marker).strip() for marker in markers} - {""}, key=len, reverse=True)
    if not ordered:
        return None
    choices = "|".join(re.escape(marker).replace(r"\*", r"\w*") for marker in ordered)
    return re.compile(rf"(?<![\w'])(?:{choices})(?![\w'])")


def _plain(text: str) -> str:
    return text.lower().replace("’", "'")

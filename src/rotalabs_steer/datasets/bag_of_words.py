"""Measures whether single words give away the side of a pair that a response is.

A logistic regression on word counts is trained on some pairs and tested on others. If it is right more than half the
time without the behaviour's own words, a steering vector may learn those other words instead of the behaviour.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rotalabs_steer.errors import DatasetError, missing_dependency
from rotalabs_steer.intervals import wilson_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rotalabs_steer.datasets.pairs import ContrastPair

_TOKEN = r"\w+(?:'\w+)*|[!?]"
_FEWEST_PAIRS = 10
_MOST_PAIRS = 2000
"""A larger dataset is sampled; the interval is then within 2.2 percentage points."""
_FOLDS = 5
_TELLING_WORDS = 8
_SUREST = 5


@dataclass(frozen=True)
class BagOfWords:
    """How often a bag of words tells the sides apart: 0.5 is chance.

    Attributes:
        accuracy, low, high: over the tested responses, with a 95 % interval (Wilson) that counts each pair once.
        trained_pairs, tested_pairs: numbers of pairs; in cross-validation every pair is tested.
        method: how training and tested pairs were kept apart.
        positive_words, negative_words: those with the largest weights for each side.
        surest: indices of the pairs whose sides it tells apart with the largest margins.
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
    """The measurement; None if there are fewer than ten pairs, or no words in their responses besides the markers.

    The classifier is trained on the split "train" and tested on "test" where the metadata of the pairs name these. Else
    five-fold cross-validation keeps the pairs of a category together, or the sides of a pair if none has a category.

    Args:
        markers: words and phrases that are removed first. In a marker, `*` stands for any letters: `*n't` matches all
            words that end with n't.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    require_scikit_learn("Checking a dataset")
    method, folds = _folds(pairs)
    if not folds:
        return None
    pattern = _marker_pattern(markers)
    tested: list[int] = []
    scores: list[NDArray[np.float64]] = []
    for training, testing in folds:
        try:
            classifier = fit_classifier(_texts(pairs, training, pattern))
        except DatasetError:
            return None
        scores.append(classifier.decision_function(_texts(pairs, testing, pattern)))
        tested.extend(testing)
    if len(folds) > 1:  # every pair has been tested: the words to report are those that all pairs give
        training = sorted(tested)
        classifier = fit_classifier(_texts(pairs, training, pattern))
    score = np.concatenate(scores).reshape(-1, 2)  # [pair, side]
    right = np.stack([score[:, 0] > 0, score[:, 1] <= 0])
    accuracy = float(right.mean())
    # The sides of a pair are not independent, so the interval is that of as many trials as there are pairs.
    interval = wilson_interval(accuracy * len(tested), len(tested))
    assert interval.low is not None
    assert interval.high is not None
    words = classifier[0].get_feature_names_out()[np.argsort(classifier[1].coef_[0])].tolist()
    margin = np.where(right.all(axis=0), score[:, 0] - score[:, 1], -np.inf)
    surest = [tested[index] for index in np.argsort(-margin)[:_SUREST] if np.isfinite(margin[index])]
    return BagOfWords(
        accuracy, interval.low, interval.high, len(training), len(tested), method,
        tuple(words[::-1][:_TELLING_WORDS]), tuple(words[:_TELLING_WORDS]), tuple(sorted(surest)),
    )  # fmt: skip


def fit_classifier(texts: Sequence[str], *, word_pairs: bool = False) -> Any:
    """A logistic regression that tells positive texts from negative ones: a fitted scikit-learn pipeline.

    Args:
        texts: positive and negative texts in turn.
        word_pairs: weigh words and pairs of words by TF-IDF; else words are counted.

    Raises:
        DatasetError: there are no words in the texts.
    """
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer  # type: ignore[import-untyped]
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
    from sklearn.pipeline import make_pipeline  # type: ignore[import-untyped]

    vectorizer, penalty = CountVectorizer(token_pattern=_TOKEN), 1.0
    if word_pairs:  # so many features, few of them in a text, that a weak penalty (a large C) scores better
        vectorizer, penalty = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=_TOKEN), 10.0
    classifier = make_pipeline(vectorizer, LogisticRegression(C=penalty, max_iter=2000))
    try:
        return classifier.fit(texts, [1, 0] * (len(texts) // 2))
    except ValueError as error:  # scikit-learn's "empty vocabulary"
        raise DatasetError(
            f"The responses have no words by which to tell the sides apart: {texts[0]!r:.60}."
        ) from error


def require_scikit_learn(feature: str) -> None:
    """Raises a `MissingDependencyError` that names the feature if scikit-learn is not installed."""
    try:
        import sklearn  # type: ignore[import-untyped]  # noqa: F401
    except ImportError as error:
        raise missing_dependency(feature, "quality", error) from error


def _folds(pairs: Sequence[ContrastPair]) -> tuple[str, list[tuple[list[int], list[int]]]]:
    """What keeps training and tested pairs apart, and the indices of both for every fold."""
    from sklearn.model_selection import GroupKFold  # type: ignore[import-untyped]

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
    parts = GroupKFold(count).split(measured, groups=groups)
    folds = [([measured[i] for i in training], [measured[i] for i in testing]) for training, testing in parts]
    return f"{count}-fold cross-validation by {unit}", folds


def _sample(indices: list[int]) -> list[int]:
    """At most `_MOST_PAIRS` of the indices, drawn at random with a fixed seed: every nth row may be of one kind."""
    if len(indices) <= _MOST_PAIRS:
        return indices
    return sorted(random.Random(0).sample(indices, _MOST_PAIRS))


def _texts(pairs: Sequence[ContrastPair], indices: Sequence[int], pattern: re.Pattern[str] | None) -> list[str]:
    """Both responses of each pair in turn, without the markers."""
    plain = [_plain(text) for index in indices for text in (pairs[index].positive, pairs[index].negative)]
    return plain if pattern is None else [pattern.sub(" ", text) for text in plain]


def _marker_pattern(markers: Sequence[str]) -> re.Pattern[str] | None:
    """A pattern that matches the markers as whole words. Phrases go before the words that they contain."""
    ordered = sorted({_plain(marker).strip() for marker in markers} - {""}, key=len, reverse=True)
    if not ordered:
        return None
    choices = "|".join(re.escape(marker).replace(r"\*", r"\w*") for marker in ordered)
    return re.compile(rf"(?<![\w'])(?:{choices})(?![\w'])")


def _plain(text: str) -> str:
    return text.lower().replace("’", "'")

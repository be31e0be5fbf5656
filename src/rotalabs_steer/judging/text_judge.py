"""A judge that learns from contrast pairs, without a language model.

A logistic regression on the words and word pairs of the responses learns which side a text is like. It has seen neither
activations nor steering, so it can decide between steered models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from rotalabs_steer.datasets.bag_of_words import fit_classifier, require_scikit_learn
from rotalabs_steer.judging.scoring import differing

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from rotalabs_steer.datasets.pairs import ContrastPair


class TextJudge:
    """Scores texts by which side of a behavior's pairs their wording is like.

    Args:
        classifier: a fitted scikit-learn pipeline; `fit` makes it.
    """

    def __init__(self, classifier: Any) -> None:
        self._classifier = classifier

    @classmethod
    def fit(cls, pairs: Sequence[ContrastPair]) -> Self:
        """Fits a judge to pairs.

        Raises:
            DatasetError: the responses of the pairs do not differ, or have no words.
            MissingDependencyError: scikit-learn is not installed.
        """
        require_scikit_learn("Judging texts by their pairs")
        texts = [text for pair in differing(pairs) for text in (pair.positive, pair.negative)]
        return cls(fit_classifier(texts, word_pairs=True))

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """`[texts]`: log-odds of the positive side."""
        scores: NDArray[np.float64] = self._classifier.decision_function(texts)
        return scores

"""A judge of generated text that is made from the contrast pairs themselves, without a language model.

A logistic regression on the words and pairs of words of the responses learns which side a text is like. It has seen
no activation and no steering, so it can decide between steered models. `judge_accuracy` measures on other pairs how
well it tells the sides apart.
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
    """Scores texts by which side of a behaviour's pairs their wording is like.

    Args:
        classifier: a fitted scikit-learn pipeline; `fit` makes it.
    """

    def __init__(self, classifier: Any) -> None:
        self._classifier = classifier

    @classmethod
    def fit(cls, pairs: Sequence[ContrastPair]) -> Self:
        """A judge that knows these pairs.

        Raises:
            DatasetError: the responses do not differ, as where pairs differ in their prompts only.
            MissingDependencyError: scikit-learn is not installed.
        """
        require_scikit_learn("Judging texts by their pairs")
        texts = [text for pair in differing(pairs) for text in (pair.positive, pair.negative)]
        return cls(fit_classifier(texts, word_pairs=True))

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """`[texts]`: log-odds of the positive side."""
        scores: NDArray[np.float64] = self._classifier.decision_function(texts)
        return scores

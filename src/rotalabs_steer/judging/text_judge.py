"""A judge of generated text that is made from the contrast pairs themselves, without a language model.

A logistic regression on the words and pairs of words of the responses learns which side a text is like. It has seen
no activation and no steering, so it can decide between steered models. `judge_accuracy` measures on other pairs how
well it tells the sides apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from rotalabs_steer.errors import missing_dependency
from rotalabs_steer.judging.scoring import differing

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from rotalabs_steer.datasets.pairs import ContrastPair

_PENALTY = 10.0  # scikit-learn's C: weak regularisation, since the features are many and sparse


class TextJudge:
    """Scores texts by which side of a behaviour's pairs their wording is like.

    Args:
        vectorizer, classifier: fitted scikit-learn objects; `fit` makes them.
    """

    def __init__(self, vectorizer: Any, classifier: Any) -> None:
        self._vectorizer = vectorizer
        self._classifier = classifier

    @classmethod
    def fit(cls, pairs: Sequence[ContrastPair]) -> Self:
        """A judge that knows these pairs.

        Raises:
            DatasetError: the responses do not differ, as where pairs differ in their prompts only.
            MissingDependencyError: scikit-learn is not installed.
        """
        try:
            from sklearn.feature_extraction.text import TfidfVectorizer  # type: ignore[import-untyped]
            from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
        except ImportError as error:
            raise missing_dependency("Judging texts by their pairs", "quality", error) from error
        telling = differing(pairs)
        vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+(?:'\w+)*|[!?]")
        counts = vectorizer.fit_transform([text for pair in telling for text in (pair.positive, pair.negative)])
        classifier = LogisticRegression(C=_PENALTY, max_iter=2000).fit(counts, [1, 0] * len(telling))
        return cls(vectorizer, classifier)

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """`[texts]`: log-odds of the positive side."""
        scores: NDArray[np.float64] = self._classifier.decision_function(self._vectorizer.transform(texts))
        return scores

"""A judge that reads sentences: embeddings of whole texts, classified by what the contrast pairs show.

A `TextJudge` sees words only, so a model that repeats one telling word fools it. A sentence-embedding model was trained
to tell what texts mean. A logistic regression on its embeddings learns which side of the pairs a text is like.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Self

from rotalabs_steer.errors import missing_dependency
from rotalabs_steer.judging.scoring import differing
from rotalabs_steer.judging.sentence_model import SENTENCE_MODEL, local_sentence_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from rotalabs_steer.datasets.pairs import ContrastPair

_PENALTY = 10.0  # scikit-learn's C: weak regularisation, since embeddings have length 1
_MOST_WORDS = 40
"""Later words are left out. The pairs' responses have about 40 words, and the judge knows nothing of longer texts."""


class EmbeddingJudge:
    """Scores texts by which side of a behaviour's pairs they mean the same as.

    Args:
        encoder: a `sentence_transformers.SentenceTransformer`.
        classifier: a fitted scikit-learn classifier of its embeddings; `fit` makes both.
    """

    def __init__(self, encoder: Any, classifier: Any) -> None:
        self._encoder = encoder
        self._classifier = classifier

    @classmethod
    def fit(cls, pairs: Sequence[ContrastPair], model: str | None = None) -> Self:
        """A judge that knows these pairs.

        Args:
            model: the folder, or the name on the Hugging Face Hub, of a sentence-transformers model. The default is
                all-mpnet-base-v2.

        Raises:
            DatasetError: the responses do not differ, as where pairs differ in their prompts only.
            MissingDependencyError: sentence-transformers is not installed.
        """
        telling = differing(pairs)
        encoder = _encoder(model or str(local_sentence_model() or f"sentence-transformers/{SENTENCE_MODEL}"))
        from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]

        embeddings = _embed(encoder, [text for pair in telling for text in (pair.positive, pair.negative)])
        classifier = LogisticRegression(C=_PENALTY, max_iter=2000).fit(embeddings, [1, 0] * len(telling))
        return cls(encoder, classifier)

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """`[texts]`: log-odds of the positive side."""
        scores: NDArray[np.float64] = self._classifier.decision_function(_embed(self._encoder, texts))
        return scores


def can_embed() -> bool:
    """Whether sentence-transformers is installed, and the default model of an `EmbeddingJudge` needs no download."""
    return find_spec("sentence_transformers") is not None and local_sentence_model() is not None


@lru_cache(maxsize=1)
def _encoder(model: str) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise missing_dependency("Judging texts by their meaning", "judge", error) from error
    return SentenceTransformer(model)


def _embed(encoder: Any, texts: Sequence[str]) -> NDArray[np.float32]:
    """`[texts, width]`, each of length 1."""
    cut = [" ".join(text.split()[:_MOST_WORDS]) for text in texts]
    embeddings: NDArray[np.float32] = encoder.encode(cut, normalize_embeddings=True, show_progress_bar=False)
    return embeddings

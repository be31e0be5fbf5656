"""Judges, which tell whether an answer shows a behaviour: by words, by meaning or by a language model."""

from typing import TYPE_CHECKING

from rotalabs_steer.lazy_names import lazy_names

if TYPE_CHECKING:
    from rotalabs_steer.judging.embedding_judge import EmbeddingJudge
    from rotalabs_steer.judging.llm_judge import LLMJudge
    from rotalabs_steer.judging.scoring import Judge
    from rotalabs_steer.judging.text_judge import TextJudge

__all__ = ["EmbeddingJudge", "Judge", "LLMJudge", "TextJudge"]

_HOMES = {
    "embedding_judge": ("EmbeddingJudge",),
    "llm_judge": ("LLMJudge",),
    "scoring": ("Judge",),
    "text_judge": ("TextJudge",),
}

__getattr__ = lazy_names(__name__, _HOMES)


def __dir__() -> list[str]:
    return __all__

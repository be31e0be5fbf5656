"""A language model as the judge of a behaviour that it knows from examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rotalabs_steer.judging.llm_judge import LLMJudge


@dataclass(frozen=True)
class BehaviorJudge:
    """Scores texts by how much they show what the positive examples have and the negative ones do not.

    `LLMJudge.learn` makes it, and `tune` does that by itself.

    Attributes:
        judge: is asked, and counts the cost.
        positive, negative: example responses.
    """

    judge: LLMJudge
    positive: tuple[str, ...]
    negative: tuple[str, ...]

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """A score from −1 (like the negative examples) to 1 (like the positive ones) for each text.

        Raises:
            MissingVerdictError: the judge gave no valid verdict on a text. Verdicts that were given are in the cache.
            JudgeError: the judge cannot be asked at all.
        """
        return self.judge.of_each(texts, lambda text: self.judge.judge_behavior(text, self.positive, self.negative))

    @property
    def identity(self) -> str:
        """What tells this judge from others: the model that is asked, and the examples that it is shown."""
        return repr((self.judge, self.positive, self.negative))

    def __str__(self) -> str:
        return repr(self.judge)

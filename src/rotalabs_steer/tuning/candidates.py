"""The candidate layers that tuning steers in order to choose one, and what the model wrote under each of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch  # noqa: TC002 - a record's hints are read at run time

from rotalabs_steer.chat.conversations import Prompt  # noqa: TC001 - a record's hints are read at run time
from rotalabs_steer.errors import OptionError
from rotalabs_steer.intervals import Estimate, mean_interval
from rotalabs_steer.judging.scoring import judge_texts
from rotalabs_steer.measures.whole_answers import is_broken, share_broken
from rotalabs_steer.tuning.curves import LayerCurve  # noqa: TC001 - a record's hints are read at run time

if TYPE_CHECKING:
    from rotalabs_steer.judging.scoring import Judge


@dataclass(frozen=True)
class JudgedTexts:
    """What the model wrote at one strength, and the judge's score of each text."""

    strength: float
    texts: tuple[str, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Answers:
    """What the model wrote at minus the calibrated strength, unsteered, and at plus the calibrated strength.

    Attributes:
        prompts: a string, or a conversation where there is a system message or an earlier turn.
        by_strength: the judged answers to all prompts, in their order. Strength 1 is the calibrated strength.

    Raises:
        OptionError: −1, 0 or 1 is missing, or there is not a text and a score for each prompt.
    """

    prompts: tuple[Prompt, ...]
    by_strength: tuple[JudgedTexts, ...]

    def __post_init__(self) -> None:
        count = len(self.prompts)
        counts = [(len(row.texts), len(row.scores)) for row in self.by_strength]
        if not count or not {-1.0, 0.0, 1.0} <= self.texts.keys() or set(counts) != {(count, count)}:
            raise OptionError(
                f"Answers need a text and a score for each of {count} prompts at strengths −1, 0 and 1; there are "
                f"{counts} at {list(self.texts)}."
            )

    @property
    def texts(self) -> dict[float, tuple[str, ...]]:
        """The answers, by strength."""
        return {row.strength: row.texts for row in self.by_strength}

    @property
    def scores(self) -> dict[float, tuple[float, ...]]:
        """The judge's scores of the answers, by strength."""
        return {row.strength: row.scores for row in self.by_strength}

    @property
    def change(self) -> Estimate:
        """Half the difference between the scores at strengths 1 and −1, mean over prompts, in the judge's own unit.

        A broken answer has the score of the unsteered answer, because its loops say nothing of the behaviour.
        """
        pairs = zip(self._whole_scores(1.0), self._whole_scores(-1.0), strict=True)
        return mean_interval([(plus - minus) / 2 for plus, minus in pairs])

    @property
    def broken(self) -> dict[float, float]:
        """The share of broken answers, by strength."""
        return {row.strength: share_broken(row.texts) for row in self.by_strength}

    def judged_by(self, judge: Judge) -> Answers:
        """The same answers with another judge's scores."""
        rows = tuple(JudgedTexts(row.strength, row.texts, judge_texts(judge, row.texts)) for row in self.by_strength)
        return Answers(self.prompts, rows)

    def _whole_scores(self, strength: float) -> list[float]:
        rows = zip(self.texts[strength], self.scores[strength], self.scores[0.0], strict=True)
        return [unsteered if is_broken(text) else score for text, score, unsteered in rows]


@dataclass(frozen=True, eq=False)
class LayerCandidate:
    """A candidate layer, steered on the validation split.

    Attributes:
        first_order_score: the score by which the layer became a candidate.
        calibrated_strength: the strength at which the extracted vector spends the coherence budget.
        curve: the log-odds of the validation pairs at each strength.
        answers: the answers to the validation prompts. The layer whose answers change most is chosen.
        token_position: the read-out of the layer's vector.
    """

    layer_index: int = field(metadata={"key": "layer"})
    first_order_score: float
    calibrated_strength: float = field(metadata={"key": "unit"})
    curve: LayerCurve
    answers: Answers
    token_position: str | None = None


@dataclass(frozen=True, eq=False)
class Refinement:
    """The chosen layer's vector, turned towards the model's gradient, steered on the validation split.

    Attributes:
        vector: `[hidden]`; see `tuning.refinement`.
        cosine: to the vector that it began as.
        calibrated_strength: the strength at which it spends the coherence budget.
        answers: the answers to the validation prompts. The vector whose answers change most is chosen.
    """

    vector: torch.Tensor
    cosine: float
    calibrated_strength: float
    answers: Answers


@dataclass(frozen=True)
class SecondOpinion:
    """What a judge that chose nothing says of the test answers.

    Attributes:
        accuracy: the share of test pairs whose positive response it scores above the negative one.
        change: as `Answers.change`, in this judge's unit.
    """

    judge: str
    accuracy: float
    change: Estimate

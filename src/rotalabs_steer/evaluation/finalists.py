"""The layers that tuning steers to choose between them, and what the model wrote at each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from rotalabs_steer.evaluation.curves import LayerCurve
from rotalabs_steer.intervals import Estimate, mean_interval

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from rotalabs_steer.datasets.conversations import Prompt


@dataclass(frozen=True, eq=False)
class Answers:
    """What the model wrote at minus one unit, unsteered and at plus one unit, and the judge's scores, by strength.

    Attributes:
        prompts: a conversation where there is a system message or an earlier turn.
    """

    prompts: tuple[Prompt, ...]
    texts: Mapping[float, tuple[str, ...]]
    scores: Mapping[float, tuple[float, ...]]

    @property
    def changes(self) -> NDArray[np.float64]:
        """`[prompts]`: half the difference between the scores at plus and at minus one unit."""
        changes: NDArray[np.float64] = np.subtract(self.scores[1.0], self.scores[-1.0]) / 2
        return changes

    @property
    def change(self) -> Estimate:
        """Mean change, in the judge's unit."""
        return mean_interval(self.changes.tolist())

    def to_record(self) -> dict[str, Any]:
        """The answers as JSON has them."""
        rows = [
            {"strength": sign, "texts": list(texts), "scores": list(self.scores[sign])}
            for sign, texts in self.texts.items()
        ]
        return {"prompts": list(self.prompts), "by_strength": rows}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """The inverse of `to_record`."""
        rows = record["by_strength"]
        texts, scores = ({row["strength"]: tuple(row[name]) for row in rows} for name in ("texts", "scores"))
        return cls(tuple(record["prompts"]), texts, scores)


@dataclass(frozen=True, eq=False)
class Finalist:
    """A layer that was steered on the validation split.

    Attributes:
        first_order_score: what made it a finalist.
        unit: strength of the extracted vector that spends the budget.
        curve: log-odds of the validation pairs.
        answers: to the validation prompts; their change decides between finalists.
    """

    layer_index: int
    first_order_score: float
    unit: float
    curve: LayerCurve
    answers: Answers

    def to_record(self) -> dict[str, Any]:
        """The finalist as JSON has it."""
        return {
            "layer": self.layer_index,
            "first_order_score": self.first_order_score,
            "unit": self.unit,
            "curve": self.curve.to_record(),
            "answers": self.answers.to_record(),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """The inverse of `to_record`."""
        curve, answers = LayerCurve.from_record(record["curve"]), Answers.from_record(record["answers"])
        return cls(record["layer"], record["first_order_score"], record["unit"], curve, answers)

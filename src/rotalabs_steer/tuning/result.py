"""The result of tuning: vectors at a calibrated strength, with the measurements behind them, in memory and on disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping  # noqa: TC003 - a record's hints are read at run time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rotalabs_steer.errors import FileFormatError
from rotalabs_steer.files.records import from_json, key_of, read_record, to_json, write_record
from rotalabs_steer.intervals import Estimate, wilson_interval
from rotalabs_steer.tuning.candidates import (  # noqa: TC001 - a record's hints are read at run time
    Answers,
    LayerCandidate,
    Refinement,
    SecondOpinion,
)
from rotalabs_steer.tuning.curves import LayerCurve  # noqa: TC001 - a record's hints are read at run time
from rotalabs_steer.tuning.safe_range import SafeRange  # noqa: TC001 - a record's hints are read at run time
from rotalabs_steer.vectors import SteeringVectorSet

if TYPE_CHECKING:
    import os

    from rotalabs_steer.intervals import Estimate

SCHEMA_VERSION = 1
RECORD_FILE = "tuning.json"


@dataclass(frozen=True, eq=False, repr=False)
class TunedSteering:
    """The result of tuning a behaviour on a model.

    Attributes:
        vectors: the vectors of the candidate layers, rescaled so that strength 1.0 spends the coherence budget. The set
            records the chosen layer, so that `get_best()` and `MultiVectorInjector` take it.
        budget: the coherence budget: KL on neutral text, in nats per token.
        first_order_scores: the score of every layer.
        candidates: the candidate layers, with what was measured when each of them was steered.
        curve: the log-odds of the test pairs and the costs at each strength, with the chosen layer steered.
        control: the same measurements for a random direction at that layer, at the same cost.
        answers: the answers to the prompts of the test pairs, with the chosen layer steered.
        judge_accuracy: share of test pairs whose positive response the judge scores above the negative one. It is None
            in files of earlier releases where the judge was not a `TextJudge`.
        safe_range: how strongly each sign may steer. Strengths −1 and 1 are both inside.
        refinement: the chosen layer's vector turned towards the model's gradient, where that was tried.
        refined: whether that vector was chosen, because it changed the validation answers more.
        second_opinion: what a judge that chose nothing says, where there is one.
        provenance: the model, the versions, the pairs, the options, the judge, the seed and the date.
    """

    behavior: str
    budget: float = field(metadata={"key": "budget_kl"})
    vectors: SteeringVectorSet
    first_order_scores: Mapping[int, float]
    candidates: tuple[LayerCandidate, ...] = field(metadata={"key": "finalists"})
    curve: LayerCurve
    control: LayerCurve
    answers: Answers
    judge_accuracy: float | None
    provenance: Mapping[str, Any]
    safe_range: SafeRange | None = None
    refinement: Refinement | None = None
    refined: bool = False
    second_opinion: SecondOpinion | None = None

    @property
    def layer_index(self) -> int:
        """The chosen layer."""
        return self.curve.layer_index

    @property
    def steers(self) -> bool:
        """Whether the 95 % intervals on the test split, of the log-odds and of the answers, lie above zero.

        Where there is a second opinion, its interval has to lie above zero as well. A judge that cannot tell the test
        pairs apart says nothing.
        """
        return not self.judge_at_chance and all(estimate.above_zero for estimate in self._estimates)

    @property
    def judge_at_chance(self) -> bool:
        """Whether the judge may tell the sides of the test pairs apart by chance alone: its interval includes 0.5."""
        if self.judge_accuracy is None:
            return False
        pairs = len(self.curve.effects)
        low = wilson_interval(round(self.judge_accuracy * pairs), pairs).low
        return low is None or low <= 0.5

    @property
    def _estimates(self) -> list[Estimate]:
        second = [] if self.second_opinion is None else [self.second_opinion.change]
        return [self.curve.effect, self.answers.change, *second]

    @property
    def undecided(self) -> bool:
        """Whether nothing can be decided: the judge is at chance, or an interval is missing and none includes zero."""
        open_question = all(estimate.low is None or estimate.above_zero for estimate in self._estimates)
        return not self.steers and (self.judge_at_chance or open_question)

    @property
    def verdict(self) -> str:
        """Whether the behaviour steers: "yes", "no" or "cannot say"."""
        return "yes" if self.steers else "cannot say" if self.undecided else "no"

    @property
    def compared_fractions(self) -> tuple[float, ...]:
        """The strengths at which every candidate layer was measured, so that their effects can be compared."""
        measured = [set(candidate.curve.fractions) for candidate in self.candidates]
        return tuple(sorted(set.intersection(*measured)))

    def compared_changes(self) -> dict[int, list[Estimate]]:
        """The mean change of the log-odds at each of `compared_fractions`, for each candidate layer."""
        fractions = self.compared_fractions
        return {one.layer_index: [one.curve.change_at(at) for at in fractions] for one in self.candidates}

    def __str__(self) -> str:
        found = f"layer {self.layer_index}: log-odds {self.curve.effect} nats per token, answers {self.answers.change}"
        if self.steers:
            safe = "" if self.safe_range is None else f"; safe from {self.safe_range}"
            return f"{self.behavior}, {found} at strength ±1 (KL at most {self.budget:g}{safe})"
        if self.judge_at_chance:
            return (
                f"{self.behavior}: whether it steers on this model cannot be said: the judge scores the positive side "
                f"higher in {self.judge_accuracy:.0%} of the test pairs only, which may be chance ({found})"
            )
        if self.undecided:
            return (
                f"{self.behavior}: whether it steers on this model cannot be said: {len(self.curve.effects)} test "
                f"pairs and {len(self.answers.prompts)} answers are too few or too much alike for an interval ({found})"
            )
        return f"{self.behavior} does not steer on this model: an interval includes zero ({found})"

    def __repr__(self) -> str:
        return f"<TunedSteering: {self}>"

    def with_evidence(self) -> Self:
        """The same tuning, whose vector set also records what a user of the set alone has to know of it."""
        effect, change, safe = self.curve.effect, self.answers.change, self.safe_range
        assert safe is not None  # it is missing in files of earlier versions only
        evidence = {
            "calibration": {
                "unit": "strengths -1 and 1 cost at most the budget and leave answers whole",
                "budget_kl": self.budget,
                "safe_range": [-safe.minus.strength, safe.plus.strength],
                "bounds": [safe.minus.holds, safe.plus.holds],
            },
            "effect": {"nats_per_token": effect.mean, "low": effect.low, "high": effect.high},
            "answers": {"change": change.mean, "low": change.low, "high": change.high},
            "steers": None if self.undecided else self.steers,
            "dataset_sha256": self.provenance["dataset_sha256"],
        }
        vectors = SteeringVectorSet(self.behavior, list(self.vectors), {**self.vectors.metadata, **evidence})
        return dataclasses.replace(self, vectors=vectors)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes the vector set (as `SteeringVectorSet.save`) and, beside it, everything else as `tuning.json`."""
        self.vectors.save(directory)
        write_record(Path(directory) / RECORD_FILE, self.to_record())

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Self:
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: the folder holds no tuning.
            FileFormatError: its files are damaged, of a newer release, or do not belong together.
        """
        path = Path(directory) / RECORD_FILE
        if not path.exists():
            raise FileNotFoundError(f"{directory} holds no tuning ({RECORD_FILE}). Make one with: rotalabs-steer tune")
        record = read_record(path, SCHEMA_VERSION)
        # The record is checked before the vectors are read, which are far larger.
        tuned: Self = from_json(cls, record, f"{path} is not the record of a tuning", vectors=None)
        tuned = dataclasses.replace(tuned, vectors=SteeringVectorSet.load(directory))
        if (tuned.behavior, tuned.layer_index) != (tuned.vectors.behavior, tuned.vectors.chosen_layer):
            raise FileFormatError(f"{path} is not about the vectors beside it. Take both from one tuning.")
        return tuned

    def to_record(self) -> dict[str, Any]:
        """Everything except the vectors as JSON values, with the verdict and the layer that follow from it."""
        derived = {
            "schema_version": SCHEMA_VERSION,
            "steers": self.steers,
            "verdict": self.verdict,
            "layer": self.layer_index,
            "effect": self.curve.effect,
            "answers_change": self.answers.change,
        }
        kept = [field for field in dataclasses.fields(self) if field.name != "vectors"]
        record: dict[str, Any] = to_json(derived | {key_of(field): getattr(self, field.name) for field in kept})
        return record

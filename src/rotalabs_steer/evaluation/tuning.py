"""From contrast pairs to a layer and a strength that are known to work, or the finding that none does.

A first-order score of all layers costs one backward pass; only the best few layers are calibrated, each to the strength
that spends the coherence budget; what the model then writes decides between them, since log-odds of given responses
alone mislead; and a split that was used for nothing else says what the choice is worth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rotalabs_steer.datasets.pairs import ContrastPairDataset, as_dataset
from rotalabs_steer.datasets.rendering import render_pair
from rotalabs_steer.decoder import decoder_layers
from rotalabs_steer.errors import DatasetError
from rotalabs_steer.evaluation.coherence import DEFAULT_BUDGET, CoherenceProbe
from rotalabs_steer.evaluation.first_order import FirstOrder, NeutralCost
from rotalabs_steer.evaluation.generation import generate_texts
from rotalabs_steer.evaluation.intervals import Estimate, bootstrap_mean
from rotalabs_steer.evaluation.layer_search import LayerCurve, search_layers
from rotalabs_steer.evaluation.text_judge import TextJudge
from rotalabs_steer.extraction.extract import extract_vectors
from rotalabs_steer.extraction.methods import DEFAULT_METHOD
from rotalabs_steer.injection import ActivationInjector
from rotalabs_steer.vectors import SteeringVectorSet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import nn

    from rotalabs_steer.datasets.pairs import ContrastPair
    from rotalabs_steer.extraction.readout import Readout
    from rotalabs_steer.vectors import SteeringVector

    Judge = Callable[[Sequence[str]], NDArray[np.float64]]

SPLITS = ("train", "validation", "test")
_FEWEST_PAIRS = 10


@dataclass(frozen=True, eq=False)
class Answers:
    """What the model wrote at minus one unit, unsteered and at plus one unit, and the judge's scores."""

    prompts: tuple[str, ...]
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
        return bootstrap_mean(self.changes.tolist())


@dataclass(frozen=True, eq=False)
class Finalist:
    """A layer that was steered: the strength that spends the budget there, and what the model wrote."""

    layer_index: int
    first_order_score: float
    unit: float
    answers: Answers


@dataclass(frozen=True, eq=False)
class TunedSteering:
    """The outcome of tuning a behaviour on a model.

    Attributes:
        vectors: the finalists' vectors, rescaled so that strength 1.0 spends the coherence budget; the chosen layer is
            recorded, so that `get_best()` and `MultiVectorInjector` take it.
        first_order_scores: of every layer.
        curve: log-odds of the test pairs by strength, at the chosen layer.
        answers: to the prompts of the test pairs, at the chosen layer.
        judge_accuracy: share of test pairs whose sides the judge tells apart; None for a judge of the caller's.
    """

    behavior: str
    budget: float
    vectors: SteeringVectorSet
    first_order_scores: Mapping[int, float]
    finalists: tuple[Finalist, ...]
    curve: LayerCurve
    answers: Answers
    judge_accuracy: float | None

    @property
    def layer_index(self) -> int:
        """The chosen layer."""
        return self.curve.layer_index

    @property
    def steers(self) -> bool:
        """Whether, on the test split, both the log-odds and what the model writes move the right way beyond doubt."""
        return self.curve.effect.low > 0 and self.answers.change.low > 0

    def __str__(self) -> str:
        found = f"layer {self.layer_index}: log-odds {self.curve.effect} nats per token, answers {self.answers.change}"
        if self.steers:
            return f"{self.behavior}, {found} at strength ±1 (KL {self.budget:g})"
        return f"{self.behavior} does not steer on this model: an interval includes zero ({found})"


def tune(
    model: nn.Module,
    tokenizer: Any,
    contrast_pairs: ContrastPairDataset | Iterable[ContrastPair | Mapping[str, Any]],
    *,
    method: str = DEFAULT_METHOD,
    token_position: Readout | None = None,
    budget: float = DEFAULT_BUDGET,
    finalists: int = 3,
    prompts: int = 16,
    max_new_tokens: int = 40,
    judge: Judge | None = None,
    cost: NeutralCost | None = None,
    show_progress: bool = True,
) -> TunedSteering:
    """Vectors, layer and strength for a behaviour, with the evidence.

    Args:
        contrast_pairs: with prompts. Their metadata may name a "split" (train, validation, test); else every fifth pair
            validates and every fifth tests, whole categories together where there are any.
        budget: KL on neutral text, nats per token, that strength 1.0 may cost.
        finalists: how many layers are steered to choose between them.
        prompts: how many prompts of a split are answered.
        judge: scores texts, higher for more of the behaviour; by default a `TextJudge` of the training pairs.
        cost: `NeutralCost` of the model, where several behaviours are tuned.

    Raises:
        DatasetError: fewer than ten pairs, or pairs without prompts.
    """
    splits = split_pairs(as_dataset(contrast_pairs))
    layers = list(range(len(decoder_layers(model))))
    cost = cost or NeutralCost.measure(model, tokenizer, layers)
    options = {"token_position": token_position, "show_progress": show_progress}
    vectors = extract_vectors(model, tokenizer, splits["train"], layers, method=method, **options)  # type: ignore[arg-type]
    judge_or_default = judge or TextJudge.fit(list(splits["train"]))
    rendered = [render_pair(tokenizer, pair) for pair in splits["validation"]]
    scores = FirstOrder.measure(model, rendered, layers, cost, show_progress=show_progress).scores(vectors)
    probe = CoherenceProbe(model, tokenizer)

    def answer(vector: SteeringVector, unit: float, split: str) -> Answers:
        asked = tuple(dict.fromkeys(pair.prompt or "" for pair in splits[split]))[:prompts]
        return answers_at(model, tokenizer, vector, unit, asked, judge_or_default, max_new_tokens)

    found = []
    for layer in _apart(scores, finalists):
        injector = ActivationInjector(model, [vectors[layer]])
        unit = probe.strength_at(injector, cost.strength_at(vectors[layer], budget), budget)
        found.append(Finalist(layer, scores[layer], unit, answer(vectors[layer], unit, "validation")))
    best = max(found, key=lambda finalist: finalist.answers.change.mean)
    rescaled = SteeringVectorSet(
        splits["train"].behavior,
        [vectors[finalist.layer_index].scale(finalist.unit) for finalist in found],
        {**vectors.metadata, "chosen_layer": best.layer_index},
    )
    curve = search_layers(
        model, tokenizer, rescaled, splits["test"], [best.layer_index], budget=budget, show_progress=show_progress
    ).best
    tested = answer(rescaled[best.layer_index], 1.0, "test")
    accuracy = judge_or_default.accuracy(list(splits["test"])) if isinstance(judge_or_default, TextJudge) else None
    return TunedSteering(
        rescaled.behavior, budget, _with_evidence(rescaled, curve, tested, budget), scores, tuple(found), curve, tested,
        accuracy,
    )  # fmt: skip


def answers_at(
    model: nn.Module,
    tokenizer: Any,
    vector: SteeringVector,
    unit: float,
    prompts: Sequence[str],
    judge: Judge,
    max_new_tokens: int = 40,
) -> Answers:
    """Greedy answers to prompts at −1, 0 and +1 units of strength, with the judge's scores."""
    injector = ActivationInjector(model, [vector])
    texts = {}
    for sign in (-1.0, 0.0, 1.0):
        injector.strength = sign * unit
        with injector:
            texts[sign] = tuple(generate_texts(model, tokenizer, prompts, max_new_tokens))
    scores = {sign: tuple(judge(written).tolist()) for sign, written in texts.items()}
    return Answers(tuple(prompts), texts, scores)


def split_pairs(dataset: ContrastPairDataset) -> dict[str, ContrastPairDataset]:
    """The pairs by split: as their metadata say, else three fifths to train on and a fifth each for the others.

    Raises:
        DatasetError: fewer than ten pairs, pairs without prompts, or a split that would be empty.
    """
    if len(dataset) < _FEWEST_PAIRS or any(pair.prompt is None for pair in dataset):
        raise DatasetError(
            f"Tuning needs at least {_FEWEST_PAIRS} pairs, all with prompts, to choose on some and test on others; "
            f"{dataset.behavior!r} has {len(dataset)}, {sum(pair.prompt is None for pair in dataset)} without a prompt."
        )
    named = [pair.metadata.get("split") for pair in dataset]
    if not set(SPLITS) <= set(named):
        groups = list(dict.fromkeys(pair.category for pair in dataset))
        of_group = {group: _turn(number) for number, group in enumerate(groups)}
        few = len(groups) < len(SPLITS) + 2
        named = [_turn(number) if few else of_group[pair.category] for number, pair in enumerate(dataset)]
    found = {split: [pair for pair, name in zip(dataset, named, strict=True) if name == split] for split in SPLITS}
    return {split: ContrastPairDataset(dataset.behavior, pairs, dataset.description) for split, pairs in found.items()}


def _turn(number: int) -> str:
    return ("train", "train", "validation", "train", "test")[number % 5]


def _apart(scores: Mapping[int, float], count: int) -> list[int]:
    """The layers with the best scores, no two next to each other: neighbours differ too little to choose between."""
    chosen: list[int] = []
    for layer in sorted(scores, key=lambda layer: -scores[layer]):
        if all(abs(layer - other) > 1 for other in chosen):
            chosen.append(layer)
    return chosen[:count]


def _with_evidence(vectors: SteeringVectorSet, curve: LayerCurve, answers: Answers, budget: float) -> SteeringVectorSet:
    effect, change = curve.effect, answers.change
    evidence = {
        "calibration": {"unit": "strength 1.0 costs the budget", "budget_kl": budget},
        "effect": {"nats_per_token": effect.mean, "low": effect.low, "high": effect.high},
        "answers": {"change": change.mean, "low": change.low, "high": change.high},
    }
    return SteeringVectorSet(vectors.behavior, list(vectors), {**vectors.metadata, **evidence})

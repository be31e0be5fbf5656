"""Chooses a layer and a strength from contrast pairs and measures whether they steer.

1. Every layer gets a vector from the training split, and a first-order score on the validation split from one backward
   pass. The layers with the best scores become candidates.
2. Each candidate is calibrated to the strength that spends the coherence budget and then steered on the validation
   split. What the model writes decides between them, because the log-odds of given responses alone mislead.
3. The test split, which was used for nothing else, shows how well the chosen layer steers.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

import rotalabs_steer
from rotalabs_steer.arguments import as_integer, as_real
from rotalabs_steer.chat.tokenizer import ChatTokenizer
from rotalabs_steer.datasets.loading import pairs_from
from rotalabs_steer.datasets.rendering import render_pair
from rotalabs_steer.datasets.splits import split_pairs, spread
from rotalabs_steer.errors import OptionError
from rotalabs_steer.extraction.extract import extract_vectors
from rotalabs_steer.extraction.methods import DEFAULT_METHOD
from rotalabs_steer.extraction.pair_texts import check_scorable, side_name, sides_of
from rotalabs_steer.extraction.readout import readout_name
from rotalabs_steer.files.records import to_json
from rotalabs_steer.judging.identity import judge_identity
from rotalabs_steer.judging.scoring import judge_accuracy, judge_name, judge_of, judge_texts
from rotalabs_steer.judging.text_judge import TextJudge
from rotalabs_steer.measures.coherence import DEFAULT_BUDGET, Calibration, CoherenceProbe
from rotalabs_steer.model.decoder import decoder_layers, model_fingerprint, model_name
from rotalabs_steer.model.digest import model_digest, tokenizer_digest
from rotalabs_steer.steering.injection import ActivationInjector
from rotalabs_steer.steering.plain_model import unsteered
from rotalabs_steer.tuning.candidates import Answers, LayerCandidate
from rotalabs_steer.tuning.checkpoint import Checkpoint
from rotalabs_steer.tuning.curves import LayerCurve
from rotalabs_steer.tuning.first_order import FirstOrder, NeutralCost
from rotalabs_steer.tuning.result import RECORD_FILE, TunedSteering
from rotalabs_steer.tuning.split_measurer import SplitMeasurer
from rotalabs_steer.vectors import SteeringVector, SteeringVectorSet

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence

    from torch import nn

    from rotalabs_steer.datasets.pairs import ContrastPair, ContrastPairDataset
    from rotalabs_steer.extraction.readout import Readout
    from rotalabs_steer.judging.scoring import Judge, LearningJudge

_SEED = 0
_FRACTIONS = (-1.0, -0.5, 0.0, 0.5, 1.0)
_ENDS = (-1.0, 0.0, 1.0)
"""Without the strengths between, which would not change the decision."""
_STEPS_FILE = "unfinished-tuning.json"
_SUMS_FILE = "unfinished-extraction.safetensors"


@dataclass(frozen=True)
class TuningOptions:
    """How tuning extracts vectors, and how much it measures.

    Attributes:
        method, token_position: how vectors are extracted; see `extract_vectors`.
        budget: the coherence budget: the KL on neutral text, in nats per token, that strength 1.0 costs.
        candidates: how many candidate layers to steer before choosing one.
        validation_pairs: how many validation pairs score the layers and the candidates. They are taken evenly from the
            split.
        prompts: how many prompts of each split the model answers.
        max_new_tokens: the maximum number of new tokens in each answer.
        template_options: options of the chat template, as in `{"enable_thinking": False}`.

    Raises:
        OptionError: a number is not above zero, or not an integer where it counts something.
    """

    method: str = DEFAULT_METHOD
    token_position: Readout | None = None
    budget: float = DEFAULT_BUDGET
    candidates: int = field(default=3, metadata={"key": "finalists"})
    validation_pairs: int = 8
    prompts: int = 12
    max_new_tokens: int = 32
    template_options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in ("budget", "candidates", "validation_pairs", "prompts", "max_new_tokens"):
            given = getattr(self, name)
            number = as_real(given) if name == "budget" else as_integer(given)
            if number is None or number <= 0:
                kind = "a number" if name == "budget" else "an integer"
                raise OptionError(f"{name} is {given!r}; it must be {kind} above zero.")
            object.__setattr__(self, name, number)

    def to_record(self) -> dict[str, Any]:
        """The options as JSON values."""
        position = self.token_position
        record: dict[str, Any] = to_json(self)
        return record | {"token_position": None if position is None else readout_name(position)}


def tune(
    model: nn.Module,
    tokenizer: Any,
    contrast_pairs: str | os.PathLike[str] | ContrastPairDataset | Iterable[ContrastPair | Mapping[str, Any]],
    output: str | os.PathLike[str] | None = None,
    *,
    judge: Judge | LearningJudge | None = None,
    show_progress: bool = True,
    **options: Any,
) -> TunedSteering:
    """Extracts vectors for a behaviour, chooses a layer and a strength, and measures how well they steer.

    Args:
        contrast_pairs: pairs with prompts and responses, a file of such pairs (as `load_pairs` reads it), or the name
            of a built-in behaviour. The metadata of a pair may name its "split". `split_pairs` says which names it
            understands and how it shares out pairs without one.
        output: a folder for the result (`TunedSteering.save`). Each finished step is saved there at once. When `tune`
            was stopped, call it again: it continues from the last finished step, to the same result.
        judge: scores what the model writes. It is a function that returns one finite number for each text of a list,
            higher for more of the behaviour; or a `TextJudge`; or an `LLMJudge`, which is shown a few of the training
            pairs. The default is a `TextJudge` of the training pairs. The judge is asked about two texts before the
            model runs. With `output`, a digest of the judge's content identifies it when the work is resumed; give
            a judge that cannot be digested a string attribute `identity`.
        options: fields of `TuningOptions`.

    Raises:
        DatasetError: fewer than ten pairs, or pairs without prompts or responses.
        OptionError: an option is out of range, the judge's scores are not one finite number for each text, no strength
            costs the budget, the folder belongs to other work, or the judge cannot be told from other judges.
        JudgeError: an `LLMJudge` cannot be asked, or gave no verdict on a text. Finished steps are kept.
    """
    if "finalists" in options:  # the name of `candidates` in earlier versions
        options["candidates"] = options.pop("finalists")
    return Tuner(model, tokenizer, TuningOptions(**options), show_progress=show_progress).tune(
        contrast_pairs, output, judge
    )


class Tuner:
    """Tunes any number of behaviours on one model. Neutral text is measured once for all of them.

    Args:
        options: how much to measure; the defaults of `TuningOptions` if not given.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any, options: TuningOptions | None = None, *, show_progress: bool = True
    ) -> None:
        options = options or TuningOptions()
        self._model, self._tokenizer = model, ChatTokenizer.of(tokenizer, options.template_options)
        self.options = dataclasses.replace(options, template_options=dict(self._tokenizer.template_options))
        self._show_progress = show_progress
        self._layers = list(range(len(decoder_layers(model))))
        self._measured_weights = ""

    def tune(
        self,
        contrast_pairs: str | os.PathLike[str] | ContrastPairDataset | Iterable[ContrastPair | Mapping[str, Any]],
        output: str | os.PathLike[str] | None = None,
        judge: Judge | LearningJudge | None = None,
    ) -> TunedSteering:
        """Tunes one behaviour; see the function `tune`."""
        with unsteered(self._model):
            return self._tune(pairs_from(contrast_pairs), None if output is None else Path(output), judge)

    def _tune(
        self, dataset: ContrastPairDataset, folder: Path | None, given: Judge | LearningJudge | None
    ) -> TunedSteering:
        splits = split_pairs(dataset)
        self._check_responses(splits)
        train = list(splits["train"])
        judge = None if given is None else judge_of(given, train)
        if judge is not None:  # a judge that cannot be used is an error now, not once the model has answered
            judge_texts(judge, [train[0].positive, train[0].negative])
        weights = model_digest(self._model)
        work = self._work(splits, weights, judge_identity(judge, saved=folder is not None))
        if folder is not None and (folder / RECORD_FILE).exists():
            return _finished(folder, work)
        checkpoint = Checkpoint(None if folder is None else folder / _STEPS_FILE, work)
        judge = TextJudge.fit(train) if judge is None else judge
        facts = {"judge": judge_name(judge), "dataset_sha256": dataset.sha256, "work": work}
        self._measure_neutral_text(weights)
        tuned = self._run(splits, judge, checkpoint, folder, {**self._provenance(splits), **facts})
        if folder is not None:
            tuned.save(folder)
            checkpoint.remove()
            (folder / _SUMS_FILE).unlink(missing_ok=True)
        return tuned

    def _check_responses(self, splits: Mapping[str, ContrastPairDataset]) -> None:
        """Raises a `DatasetError` for a pair whose responses cannot be scored, before the model runs."""
        for split in ("validation", "test"):
            pairs = [
                render_pair(self._tokenizer, pair, place=f"{split} pair {n}") for n, pair in enumerate(splits[split])
            ]
            check_scorable(sides_of(pairs), partial(_name_in, split))

    def _run(
        self,
        splits: Mapping[str, ContrastPairDataset],
        judge: Judge,
        checkpoint: Checkpoint,
        folder: Path | None,
        provenance: Mapping[str, Any],
    ) -> TunedSteering:
        """Does the steps that the checkpoint does not have."""
        vectors = self._extract(splits["train"], folder)
        validation = self._measurer(spread(splits["validation"], self.options.validation_pairs))
        test = self._measurer(list(splits["test"]))

        def score() -> list[float]:
            first_order = FirstOrder.measure(self._model, validation.pairs, self._layers, self._cost)
            return [first_order.score(vectors[layer]) for layer in self._layers]

        def control() -> LayerCurve:
            direction = _random_direction(vectors[best.layer_index])
            return test.curve(direction, self._calibrate(direction), _ENDS)

        step = checkpoint.get_or_compute
        scores: dict[int, float] = dict(enumerate(step("scores", score, list[float])))
        layers = _best_apart(scores, self.options.candidates)
        candidates = []
        for layer in tqdm(
            layers, desc="steering candidate layers", unit="layer", disable=not self._show_progress, leave=False
        ):
            steer = partial(self._steer, vectors[layer], scores[layer], validation, judge)
            candidates.append(step(f"layer {layer}", steer, LayerCandidate))
        best = max(candidates, key=lambda candidate: candidate.answers.change.mean)
        rescaled = SteeringVectorSet(
            vectors.behavior,
            [vectors[candidate.layer_index].scale(candidate.calibrated_strength) for candidate in candidates],
            {**vectors.metadata, "chosen_layer": best.layer_index},
        )
        chosen = rescaled[best.layer_index]
        calibration = Calibration(1.0, (best.curve.cost_at(-1.0), best.curve.cost_at(1.0)))
        return _with_evidence(
            TunedSteering(
                behavior=rescaled.behavior,
                budget=self.options.budget,
                vectors=rescaled,
                first_order_scores=scores,
                candidates=tuple(candidates),
                curve=step("test", lambda: test.curve(chosen, calibration, _FRACTIONS), LayerCurve),
                control=step("control", control, LayerCurve),
                answers=step("answers", lambda: test.answers(chosen, 1.0, judge), Answers),
                judge_accuracy=step("judge accuracy", lambda: judge_accuracy(judge, list(splits["test"])), float),
                provenance=provenance,
            )
        )

    def _extract(self, train: ContrastPairDataset, folder: Path | None) -> SteeringVectorSet:
        """The vectors of all layers. A stopped extraction is resumed from the folder."""
        return extract_vectors(
            self._model,
            self._tokenizer,
            train,
            self._layers,
            method=self.options.method,
            token_position=self.options.token_position,
            resume=None if folder is None else folder / _SUMS_FILE,
            show_progress=self._show_progress,
        )

    def _measurer(self, pairs: Sequence[ContrastPair]) -> SplitMeasurer:
        options = self.options
        return SplitMeasurer(self._model, self._tokenizer, self._probe, pairs, options.prompts, options.max_new_tokens)

    def _steer(self, vector: SteeringVector, score: float, split: SplitMeasurer, judge: Judge) -> LayerCandidate:
        """Steers a candidate layer at its calibrated strength."""
        calibration = self._calibrate(vector)
        curve = split.curve(vector, calibration, _ENDS)
        answers = split.answers(vector, calibration.strength, judge)
        return LayerCandidate(vector.layer_index, score, calibration.strength, curve, answers)

    def _calibrate(self, vector: SteeringVector) -> Calibration:
        """The strength at which a vector spends the budget."""
        budget = self.options.budget
        injector = ActivationInjector(self._model, [vector])
        try:
            return self._probe.calibrate(injector, self._cost.strength_at(vector, budget), budget)
        except OptionError as error:
            raise OptionError(f"The vector of layer {vector.layer_index} cannot be calibrated. {error}") from error

    def _measure_neutral_text(self, weights: str) -> None:
        """Measures the unsteered model on neutral text, once for each state of its weights."""
        if weights != self._measured_weights:
            self._cost = NeutralCost.measure(self._model, self._tokenizer, self._layers)
            self._probe = CoherenceProbe(self._model, self._tokenizer)
            self._measured_weights = weights

    def _work(self, splits: Mapping[str, ContrastPairDataset], weights: str, judge: str) -> str:
        """A digest of everything that decides the result: the model, the pairs, the options and the judge."""
        chat = self._tokenizer
        model = (model_name(self._model), weights, tokenizer_digest(chat.tokenizer), chat.processor_template)
        pairs = [(split, found.behavior, found.sha256) for split, found in splits.items()]
        return hashlib.sha256(repr((model, pairs, self.options.to_record(), judge)).encode()).hexdigest()

    def _provenance(self, splits: Mapping[str, ContrastPairDataset]) -> dict[str, Any]:
        import transformers

        return {
            "model": model_name(self._model),
            "fingerprint": model_fingerprint(self._model),
            "pairs": {split: len(pairs) for split, pairs in splits.items()},
            "options": self.options.to_record(),
            "seed": _SEED,
            "date": datetime.now().astimezone().date().isoformat(),
            "rotalabs-steer": rotalabs_steer.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }


def _name_in(split: str, index: int) -> str:
    return f"{side_name(index)} of the {split} split"


def _best_apart(scores: Mapping[int, float], count: int) -> list[int]:
    """The layers with the best scores, no two next to each other: neighbours differ too little to choose between."""
    chosen: list[int] = []
    for layer in sorted(scores, key=lambda layer: -scores[layer]):
        if all(abs(layer - other) > 1 for other in chosen):
            chosen.append(layer)
    return chosen[:count]


def _random_direction(vector: SteeringVector) -> SteeringVector:
    """A random vector at the same layer with the same norm."""
    drawn = torch.randn(vector.dim, generator=torch.Generator().manual_seed(_SEED))
    return dataclasses.replace(vector, vector=drawn * (vector.norm / drawn.norm()))


def _finished(folder: Path, work: str) -> TunedSteering:
    tuned = TunedSteering.load(folder)
    if tuned.provenance.get("work") != work:
        raise OptionError(
            f"{folder} holds the tuning of another model, other pairs or other options (a model whose weights, "
            "adapters or chat template have changed is another). Choose another folder."
        )
    return tuned


def _with_evidence(tuned: TunedSteering) -> TunedSteering:
    """The tuning, whose vector set also records what a user of the set alone has to know of it."""
    effect, change = tuned.curve.effect, tuned.answers.change
    evidence = {
        "calibration": {"unit": "strength 1.0 costs the budget", "budget_kl": tuned.budget},
        "effect": {"nats_per_token": effect.mean, "low": effect.low, "high": effect.high},
        "answers": {"change": change.mean, "low": change.low, "high": change.high},
        "steers": None if tuned.undecided else tuned.steers,
        "dataset_sha256": tuned.provenance["dataset_sha256"],
    }
    vectors = SteeringVectorSet(tuned.behavior, list(tuned.vectors), {**tuned.vectors.metadata, **evidence})
    return dataclasses.replace(tuned, vectors=vectors)

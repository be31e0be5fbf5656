"""Chooses a layer and a strength from contrast pairs and measures whether they steer.

1. Every layer gets vectors from the training split, one for each read-out, and a first-order score on the validation
   split from one backward pass. The layers with the best scores become candidates.
2. Each candidate is calibrated to the strength that spends the coherence budget and then steered on the validation
   split. What the model writes decides between them, because the log-odds of given responses alone mislead. Broken
   answers count as unsteered.
3. The best candidate's vector is turned a little towards the model's gradient, and what the model writes decides again.
4. Strength 1 is set so that both signs stay in the budget and leave the answers whole.
5. The test split, which was used for nothing else, shows how well the chosen vector steers.
"""

from __future__ import annotations

import dataclasses
import hashlib
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

import rotalabs_steer
from rotalabs_steer.chat.tokenizer import ChatTokenizer
from rotalabs_steer.datasets.loading import pairs_from
from rotalabs_steer.datasets.rendering import render_pair
from rotalabs_steer.datasets.splits import split_pairs, spread
from rotalabs_steer.errors import OptionError
from rotalabs_steer.extraction.extract import read_statistics
from rotalabs_steer.extraction.pair_texts import check_scorable, side_name, sides_of
from rotalabs_steer.judging.embedding_judge import EmbeddingJudge, can_embed
from rotalabs_steer.judging.identity import judge_identity
from rotalabs_steer.judging.scoring import judge_accuracy, judge_name, judge_of, judge_texts
from rotalabs_steer.judging.text_judge import TextJudge
from rotalabs_steer.measures.coherence import Calibration, CoherenceProbe
from rotalabs_steer.model.decoder import decoder_layers, model_fingerprint, model_name
from rotalabs_steer.model.digest import model_digest, tokenizer_digest
from rotalabs_steer.steering.injection import ActivationInjector
from rotalabs_steer.steering.plain_model import unsteered
from rotalabs_steer.tuning.candidates import Answers, LayerCandidate, Refinement, SecondOpinion
from rotalabs_steer.tuning.checkpoint import Checkpoint
from rotalabs_steer.tuning.curves import LayerCurve
from rotalabs_steer.tuning.first_order import FirstOrder, NeutralCost
from rotalabs_steer.tuning.options import TuningOptions
from rotalabs_steer.tuning.refinement import tilt
from rotalabs_steer.tuning.result import RECORD_FILE, TunedSteering
from rotalabs_steer.tuning.safe_range import SafeRange
from rotalabs_steer.tuning.split_measurer import SplitMeasurer
from rotalabs_steer.vectors import SteeringVector, SteeringVectorSet

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence

    from torch import nn

    from rotalabs_steer.datasets.pairs import ContrastPair, ContrastPairDataset
    from rotalabs_steer.judging.scoring import Judge, LearningJudge

_SEED = 0
_ALGORITHM = 2
"""Raised whenever the steps change, so that no result mixes steps of two versions."""
_POSITIONS = ("response", "last")
_REFINING_PAIRS = 32
_FRACTIONS = (-1.0, -0.5, 0.0, 0.5, 1.0)
_ENDS = (-1.0, 0.0, 1.0)
"""Without the strengths between, which would not change the decision."""
_STEPS_FILE = "unfinished-tuning.json"
_SUMS_FILE = "unfinished-extraction.safetensors"


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
            pairs. The default judge is made from the training pairs; see `judge_by` of `TuningOptions`. Where that one
            goes by meaning, the words of the test answers have to agree. The judge is asked about two texts before the
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
        by_meaning = judge is None and self._judges_by_meaning()
        identity = "the default judge, by meaning" if by_meaning else judge_identity(judge, saved=folder is not None)
        work = self._work(splits, weights, identity)
        if folder is not None and (folder / RECORD_FILE).exists():
            return _finished(folder, work)
        checkpoint = Checkpoint(None if folder is None else folder / _STEPS_FILE, work)
        second = None
        if by_meaning:
            judge, second = EmbeddingJudge.fit(train), TextJudge.fit(train)
        judge = TextJudge.fit(train) if judge is None else judge
        facts = {"judge": judge_name(judge), "dataset_sha256": dataset.sha256, "work": work}
        self._measure_neutral_text(weights)
        tuned = self._run(splits, judge, second, checkpoint, folder, {**self._provenance(splits), **facts})
        if folder is not None:
            tuned.save(folder)
            checkpoint.remove()
            (folder / _SUMS_FILE).unlink(missing_ok=True)
        return tuned

    def _judges_by_meaning(self) -> bool:
        return self.options.judge_by == "meaning" or (self.options.judge_by == "auto" and can_embed())

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
        second: Judge | None,
        checkpoint: Checkpoint,
        folder: Path | None,
        provenance: Mapping[str, Any],
    ) -> TunedSteering:
        """Does the steps that the checkpoint does not have."""
        step, test_pairs = checkpoint.get_or_compute, list(splits["test"])
        extracted = self._extract(splits["train"], folder)
        validation = self._measurer(spread(splits["validation"], self.options.validation_pairs))
        test = self._measurer(test_pairs)

        def score() -> dict[str, list[float]]:
            first_order = FirstOrder.measure(self._model, validation.pairs, self._layers, self._cost)
            return {
                position: [first_order.score(vectors[layer]) for layer in self._layers]
                for position, vectors in extracted.items()
            }

        def control() -> LayerCurve:
            direction = _random_direction(steering)
            calibration = self._calibrate(direction)
            return test.curve(direction, calibration.strength, _ENDS, calibration)

        scores = step("scores", score, dict[str, list[float]])
        ranked = {(position, layer): row[layer] for position, row in scores.items() for layer in self._layers}
        candidates = []
        for position, layer in tqdm(
            _best_apart(ranked, self.options.candidates),
            desc="steering candidate layers",
            unit="layer",
            disable=not self._show_progress,
            leave=False,
        ):
            steer = partial(self._steer, extracted[position][layer], ranked[position, layer], validation, judge)
            candidates.append(step(f"layer {layer}", steer, LayerCandidate))
        best = max(candidates, key=lambda candidate: candidate.answers.change.mean)
        position = str(best.token_position)
        start = extracted[position][best.layer_index]
        refine = partial(self._refine, start, list(splits["train"]), validation, judge)
        refinement = step("refinement", refine, Refinement) if self.options.refine else None
        if refinement is not None and refinement.answers.change.mean > best.answers.change.mean:
            vector, calibrated = dataclasses.replace(start, vector=refinement.vector), refinement.calibrated_strength
        else:
            vector, calibrated = start, best.calibrated_strength
        find_range = partial(validation.safe_range, vector, calibrated, self.options.budget)
        safe_range = step("safe range", find_range, SafeRange)
        vectors = _rescaled(extracted, candidates, vector, safe_range.strength, safe_range.strength / calibrated)
        steering = vectors[best.layer_index]
        answers = step("answers", lambda: test.answers(steering, 1.0, judge), Answers)
        return TunedSteering(
            behavior=vectors.behavior,
            budget=self.options.budget,
            vectors=vectors,
            first_order_scores=dict(enumerate(scores[position])),
            candidates=tuple(candidates),
            curve=step("test", lambda: test.curve(steering, 1.0, _FRACTIONS), LayerCurve),
            control=step("control", control, LayerCurve),
            answers=answers,
            judge_accuracy=step("judge accuracy", lambda: judge_accuracy(judge, test_pairs), float),
            provenance=provenance,
            safe_range=safe_range.scaled(safe_range.strength),
            refinement=refinement,
            refined=vector is not start,
            second_opinion=None if second is None else _second_opinion(second, test_pairs, answers),
        ).with_evidence()

    def _extract(self, train: ContrastPairDataset, folder: Path | None) -> dict[str, SteeringVectorSet]:
        """The vectors of all layers, by the name of their read-out. A stopped extraction is resumed from the folder."""
        options = self.options
        statistics = read_statistics(
            self._model,
            self._tokenizer,
            train,
            self._layers,
            methods=[options.method],
            token_positions=_POSITIONS if options.token_position is None else [options.token_position],
            resume=None if folder is None else folder / _SUMS_FILE,
            show_progress=self._show_progress,
        )
        names = dict.fromkeys(position for _, position in statistics.layers)
        return {position: statistics.vectors(options.method, position) for position in names}

    def _refine(
        self, vector: SteeringVector, train: Sequence[ContrastPair], validation: SplitMeasurer, judge: Judge
    ) -> Refinement:
        """Turns a vector towards the model's gradient and steers with it on the validation split."""
        pairs = [render_pair(self._tokenizer, pair) for pair in spread(train, _REFINING_PAIRS)]
        turned = tilt(self._model, vector, pairs, self._cost, self.options.budget)
        strength = self._calibrate(turned).strength
        answers = validation.answers(turned, strength, judge)
        return Refinement(turned.vector, turned.metadata["cosine_to_start"], strength, answers)

    def _measurer(self, pairs: Sequence[ContrastPair]) -> SplitMeasurer:
        options = self.options
        return SplitMeasurer(self._model, self._tokenizer, self._probe, pairs, options.prompts, options.max_new_tokens)

    def _steer(self, vector: SteeringVector, score: float, split: SplitMeasurer, judge: Judge) -> LayerCandidate:
        """Steers a candidate layer at its calibrated strength."""
        calibration = self._calibrate(vector)
        curve = split.curve(vector, calibration.strength, _ENDS, calibration)
        answers = split.answers(vector, calibration.strength, judge)
        position = vector.metadata["token_position"]
        return LayerCandidate(vector.layer_index, score, calibration.strength, curve, answers, position)

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
        return hashlib.sha256(repr((_ALGORITHM, model, pairs, self.options.to_record(), judge)).encode()).hexdigest()

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


def _best_apart(scores: Mapping[tuple[str, int], float], count: int) -> list[tuple[str, int]]:
    """The read-outs and layers with the best scores, the best of each read-out first.

    No two are at one layer or next to each other, because neighbours differ too little to choose between. Scores of
    different read-outs say little of which makes the model write what it should, so each read-out gets a candidate.
    """
    ranked = sorted(scores, key=lambda place: -scores[place])
    first = {position: (position, layer) for position, layer in reversed(ranked)}
    chosen: list[tuple[str, int]] = []
    for position, layer in [*sorted(first.values(), key=ranked.index), *ranked]:
        if all(abs(layer - other) > 1 for _, other in chosen):
            chosen.append((position, layer))
    return chosen[:count]


def _rescaled(
    extracted: Mapping[str, SteeringVectorSet],
    candidates: Sequence[LayerCandidate],
    vector: SteeringVector,
    strength: float,
    share: float,
) -> SteeringVectorSet:
    """The vectors of the candidates, scaled so that strength 1 of the chosen one is safe in both directions.

    Args:
        vector: the chosen one.
        strength: its largest strength that is safe in both directions.
        share: that strength by the strength that spends the budget. The other layers are scaled by the same share.
    """
    found = [
        extracted[str(one.token_position)][one.layer_index].scale(share * one.calibrated_strength)
        for one in candidates
        if one.layer_index != vector.layer_index
    ]
    about = extracted[str(candidates[0].token_position)].metadata
    return SteeringVectorSet(
        vector.behavior,
        [*found, vector.scale(strength)],
        {**about, "chosen_layer": vector.layer_index},
    )


def _second_opinion(judge: Judge, pairs: Sequence[ContrastPair], answers: Answers) -> SecondOpinion:
    return SecondOpinion(judge_name(judge), judge_accuracy(judge, pairs), answers.judged_by(judge).change)


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

"""Chooses a layer and a strength from contrast pairs and measures whether they steer.

A first-order score of all layers costs one backward pass. Only the layers with the best scores become candidates. Each
of them is calibrated to the strength that spends the coherence budget, and what the model then writes decides between
them, because the log-odds of given responses alone mislead. A split that was used for nothing else shows how well the
chosen layer steers.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property, partial
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
from rotalabs_steer.judging.identity import judge_identity
from rotalabs_steer.judging.scoring import judge_accuracy, judge_name, judge_of, judge_texts
from rotalabs_steer.judging.text_judge import TextJudge
from rotalabs_steer.measures.coherence import DEFAULT_BUDGET, Calibration, CoherenceProbe
from rotalabs_steer.model.decoder import decoder_layers, model_fingerprint, model_name
from rotalabs_steer.model.digest import model_digest, tokenizer_digest
from rotalabs_steer.steering.injection import ActivationInjector
from rotalabs_steer.steering.plain_model import unsteered
from rotalabs_steer.tuning.candidates import Answers, Finalist
from rotalabs_steer.tuning.checkpoint import FinishedSteps
from rotalabs_steer.tuning.curves import LayerCurve
from rotalabs_steer.tuning.first_order import FirstOrder, NeutralCost
from rotalabs_steer.tuning.held_out_split import HeldOut
from rotalabs_steer.tuning.result import RECORD_FILE, TunedSteering
from rotalabs_steer.vectors import SteeringVector, SteeringVectorSet

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence

    from torch import nn

    from rotalabs_steer.datasets.pairs import ContrastPair, ContrastPairDataset
    from rotalabs_steer.extraction.readout import Readout
    from rotalabs_steer.judging.scoring import Judge, LearningJudge

_SEED = 0
_ENDS = (-1.0, 1.0)
"""Only the end points, where intermediate strengths would not change the decision."""
_STEPS_FILE = "unfinished-tuning.json"
_SUMS_FILE = "unfinished-extraction.safetensors"


@dataclass(frozen=True)
class TuningOptions:
    """How tuning extracts vectors, and how much it measures.

    Attributes:
        method, token_position: how vectors are extracted; see `extract_vectors`.
        budget: the coherence budget: the KL on neutral text, in nats per token, that strength 1.0 costs.
        finalists: how many candidate layers to steer before choosing one.
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
    finalists: int = 3
    validation_pairs: int = 8
    prompts: int = 12
    max_new_tokens: int = 32
    template_options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in ("budget", "finalists", "validation_pairs", "prompts", "max_new_tokens"):
            given = getattr(self, name)
            number = as_real(given) if name == "budget" else as_integer(given)
            if number is None or number <= 0:
                kind = "a number" if name == "budget" else "an integer"
                raise OptionError(f"{name} is {given!r}; it must be {kind} above zero.")
            object.__setattr__(self, name, number)

    def to_record(self) -> dict[str, Any]:
        """The options as JSON values."""
        position = self.token_position
        return dataclasses.asdict(self) | {"token_position": None if position is None else readout_name(position)}


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
        contrast_pairs: with prompts and responses; or a file of such pairs (as `load_pairs` reads it), or the name of a
            built-in behaviour. Their metadata may name a "split"; `split_pairs` says which names
            are understood and how pairs without one are shared out.
        output: a folder for the result (`TunedSteering.save`). Finished steps are kept there on the way: called again
            after it was stopped, `tune` goes on from them, to the same result.
        judge: scores what the model writes. It is a function that returns one finite number for each text of a list,
            higher for more of the behaviour; or a `TextJudge`; or an `LLMJudge`, which is shown a few of the training
            pairs. The default is a `TextJudge` of the training pairs. It is asked about two texts before the model
            runs. With `output`, its content tells it from other judges; one that has a string attribute `identity` is
            told by that.
        options: fields of `TuningOptions`.

    Raises:
        DatasetError: fewer than ten pairs, or pairs without prompts or responses.
        OptionError: an option is out of range, the judge's scores are not one finite number for each text, no strength
            costs the budget, the folder belongs to other work, or the judge cannot be told from other judges.
        JudgeError: an `LLMJudge` cannot be asked, or gave no verdict on a text. Finished steps are kept.
    """
    return Tuner(model, tokenizer, TuningOptions(**options), show_progress=show_progress).tune(
        contrast_pairs, output, judge
    )


class Tuner:
    """Tunes any number of behaviours on one model. The measurements on neutral text are made once for all of them.

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
        self._measured_on = ""

    def tune(
        self,
        contrast_pairs: str | os.PathLike[str] | ContrastPairDataset | Iterable[ContrastPair | Mapping[str, Any]],
        output: str | os.PathLike[str] | None = None,
        judge: Judge | LearningJudge | None = None,
    ) -> TunedSteering:
        """Tunes one behaviour; see the function `tune`."""
        with unsteered(self._model):
            return self._tune(pairs_from(contrast_pairs), output, judge)

    def _tune(
        self, dataset: ContrastPairDataset, output: str | os.PathLike[str] | None, given: Judge | LearningJudge | None
    ) -> TunedSteering:
        splits = split_pairs(dataset)
        for split in ("validation", "test"):  # pairs without responses are an error before the model runs
            pairs = [
                render_pair(self._tokenizer, pair, place=f"{split} pair {n}") for n, pair in enumerate(splits[split])
            ]
            check_scorable(sides_of(pairs), partial(_name_in, split))
        train = list(splits["train"])
        judge = None if given is None else judge_of(given, train)
        if judge is not None:  # one that cannot be used is an error now, not once the model has answered
            judge_texts(judge, [train[0].positive, train[0].negative])
        folder = None if output is None else Path(output)
        work = self._work(splits, judge_identity(judge, saved=output is not None))
        if folder is not None and (folder / RECORD_FILE).exists():
            return _finished(folder, work)
        steps = FinishedSteps(None if folder is None else folder / _STEPS_FILE, work)
        judge = TextJudge.fit(train) if judge is None else judge
        tuned = self._run(splits, steps, judge, folder)
        facts = {"judge": judge_name(judge), "dataset_sha256": dataset.sha256, "work": work}
        provenance = {**self._provenance(splits), **facts}
        tuned = dataclasses.replace(tuned, provenance=provenance, vectors=_with_evidence(tuned, provenance))
        if folder is not None:
            tuned.save(folder)
            steps.forget()
            (folder / _SUMS_FILE).unlink(missing_ok=True)
        return tuned

    def _run(
        self,
        splits: Mapping[str, ContrastPairDataset],
        steps: FinishedSteps,
        judge: Judge,
        folder: Path | None,
    ) -> TunedSteering:
        options = self.options
        vectors = extract_vectors(
            self._model,
            self._tokenizer,
            splits["train"],
            self._layers,
            method=options.method,
            token_position=options.token_position,
            resume=None if folder is None else folder / _SUMS_FILE,
            show_progress=self._show_progress,
        )
        validation = self._held_out(spread(splits["validation"], options.validation_pairs))
        test = self._held_out(list(splits["test"]))

        def score() -> list[float]:
            found = FirstOrder.measure(self._model, validation.pairs, self._layers, self._cost).scores(vectors)
            return [found[layer] for layer in self._layers]

        def steer(layer: int) -> Finalist:
            calibration = self._calibrate(vectors[layer])
            curve = validation.curve(vectors[layer], calibration, _ENDS)
            answers = validation.answers(vectors[layer], calibration.strength, judge)
            return Finalist(layer, scores[layer], calibration.strength, curve, answers)

        def control() -> LayerCurve:
            direction = _random_direction(vectors[best.layer_index])
            return test.curve(direction, self._calibrate(direction), _ENDS)

        scores: dict[int, float] = dict(enumerate(steps.do("scores", score, list[float])))
        candidates = _apart(scores, options.finalists)
        finalists = []
        for layer in tqdm(
            candidates, desc="steering candidate layers", unit="layer", disable=not self._show_progress, leave=False
        ):
            step = f"layer {layer}"
            finalists.append(steps.do(step, partial(steer, layer), Finalist))
        best = max(finalists, key=lambda finalist: finalist.answers.change.mean)
        rescaled = SteeringVectorSet(
            splits["train"].behavior,
            [vectors[finalist.layer_index].scale(finalist.unit) for finalist in finalists],
            {**vectors.metadata, "chosen_layer": best.layer_index},
        )
        chosen = rescaled[best.layer_index]
        unit = Calibration(1.0, (best.curve.costs[0], best.curve.costs[-1]))
        return TunedSteering(
            rescaled.behavior,
            options.budget,
            rescaled,
            scores,
            tuple(finalists),
            steps.do("test", lambda: test.curve(chosen, unit), LayerCurve),
            steps.do("control", control, LayerCurve),
            steps.do("answers", lambda: test.answers(chosen, 1.0, judge), Answers),
            steps.do("judge accuracy", lambda: judge_accuracy(judge, list(splits["test"])), float),
            {},
        )

    def _held_out(self, pairs: Sequence[ContrastPair]) -> HeldOut:
        options = self.options
        return HeldOut(self._model, self._tokenizer, self._probe, pairs, options.prompts, options.max_new_tokens)

    def _calibrate(self, vector: SteeringVector) -> Calibration:
        """The strength at which a vector spends the budget."""
        budget = self.options.budget
        injector = ActivationInjector(self._model, [vector])
        try:
            return self._probe.calibrate(injector, self._cost.strength_at(vector, budget), budget)
        except OptionError as error:
            raise OptionError(f"The vector of layer {vector.layer_index} cannot be calibrated. {error}") from error

    @cached_property
    def _cost(self) -> NeutralCost:
        return NeutralCost.measure(self._model, self._tokenizer, self._layers)

    @cached_property
    def _probe(self) -> CoherenceProbe:
        return CoherenceProbe(self._model, self._tokenizer)

    def _work(self, splits: Mapping[str, ContrastPairDataset], identity: str) -> str:
        weights = model_digest(self._model)
        if weights != self._measured_on:  # what neutral text says of other weights does not count
            self._measured_on = weights
            for measured in ("_cost", "_probe"):
                self.__dict__.pop(measured, None)
        chat = self._tokenizer
        model = (model_name(self._model), weights, tokenizer_digest(chat.tokenizer), chat.processor_template)
        pairs = [(split, found.behavior, found.sha256) for split, found in splits.items()]
        work = (model, pairs, self.options.to_record(), identity)
        return hashlib.sha256(repr(work).encode()).hexdigest()

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


def _apart(scores: Mapping[int, float], count: int) -> list[int]:
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


def _with_evidence(tuned: TunedSteering, provenance: Mapping[str, Any]) -> SteeringVectorSet:
    """The vectors, with what a user of the set alone has to know of the tuning."""
    effect, change = tuned.curve.effect, tuned.answers.change
    evidence = {
        "calibration": {"unit": "strength 1.0 costs the budget", "budget_kl": tuned.budget},
        "effect": {"nats_per_token": effect.mean, "low": effect.low, "high": effect.high},
        "answers": {"change": change.mean, "low": change.low, "high": change.high},
        "steers": None if tuned.undecided else tuned.steers,
        "dataset_sha256": provenance["dataset_sha256"],
    }
    return SteeringVectorSet(tuned.behavior, list(tuned.vectors), {**tuned.vectors.metadata, **evidence})

"""Everything about a vector that can be measured without a judge, in one record."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rotalabs_steer.arguments import list_of
from rotalabs_steer.chat.tokenizer import ChatTokenizer
from rotalabs_steer.datasets.pairs import as_dataset
from rotalabs_steer.datasets.rendering import render_pair
from rotalabs_steer.errors import OptionError
from rotalabs_steer.evaluation.refusal_rates import refusal_metrics
from rotalabs_steer.evaluation.strength_measurement import list_of_strengths, measure_strengths
from rotalabs_steer.extraction.pair_texts import check_scorable, side_name, sides_of
from rotalabs_steer.intervals import PairedComparison, compare_paired
from rotalabs_steer.judging.refusal import is_refusal
from rotalabs_steer.measures.capability import CapabilityCheck, CapabilityProbe
from rotalabs_steer.measures.coherence import CoherenceCost, CoherenceProbe
from rotalabs_steer.measures.detection import Detection, detection_auroc
from rotalabs_steer.measures.propensity import pair_propensities
from rotalabs_steer.steering.acting_layers import acting_vectors
from rotalabs_steer.steering.injection import ActivationInjector
from rotalabs_steer.steering.plain_model import on_plain_model

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import nn

    from rotalabs_steer.chat.conversations import Prompt
    from rotalabs_steer.datasets.pairs import ContrastPair, ContrastPairDataset
    from rotalabs_steer.evaluation.metrics import RefusalMetrics
    from rotalabs_steer.generation.answers import Sampling
    from rotalabs_steer.steering.acting_layers import Vectors

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class StrengthEvaluation:
    """One strength against the unsteered model.

    Attributes:
        effect: change of the pairs' log-odds, nats per token, with its interval and test.
        wrong_way: share of pairs whose log-odds change against the sign of the strength.
        cost: coherence cost on neutral text.
        capability: accuracy on questions.
        refusal: rates on harmful and benign prompts; None if there were no such prompts.
    """

    strength: float
    effect: PairedComparison
    wrong_way: float
    cost: CoherenceCost
    capability: CapabilityCheck
    refusal: RefusalMetrics | None = None


@dataclass(frozen=True)
class VectorEvaluation:
    """What a vector, or the acting vectors of a set, does to pairs that it was not made from.

    Attributes:
        layer_index: the deepest acting layer. There, the vector is tested as a detector of the behavior.
        acting_layers: the layers that were steered together.
        pairs: number of pairs.
        unsteered: the unsteered model's cost: KL 0, and the perplexity to compare with.
        seed: of the tests.
    """

    behavior: str
    layer_index: int
    acting_layers: tuple[int, ...]
    pairs: int
    detection: Detection
    unsteered: CoherenceCost
    strengths: tuple[StrengthEvaluation, ...]
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON-like values."""
        return asdict(self)


def check_strengths(strengths: float | Sequence[float]) -> list[float]:
    """The strengths as floats.

    Raises:
        OptionError: there are none, or one is 0 or not a finite number.
    """
    levels = list_of_strengths(strengths)
    if not levels or 0.0 in levels:
        raise OptionError(f"Strengths {levels} cannot be compared with 0: give at least one, and not 0.")
    return levels


@on_plain_model
def evaluate_vector(
    model: nn.Module,
    tokenizer: Any,
    vector: Vectors,
    contrast_pairs: ContrastPairDataset | Iterable[ContrastPair | Mapping[str, Any]],
    strengths: Sequence[float] = (-1.0, 1.0),
    *,
    refusal_prompts: tuple[Sequence[Prompt], Sequence[Prompt]] | None = None,
    sampling: Sampling | None = None,
    template_options: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> VectorEvaluation:
    """Measures a vector's effect on log-odds, coherence cost, remaining capability, and use as a detector.

    Args:
        vector: a vector, or a set, whose acting layers are steered together.
        contrast_pairs: pairs that the vector was not made from.
        refusal_prompts: harmful and benign prompts, which the model answers at every strength.
        template_options: for the chat template, as in `{"enable_thinking": False}`.
        seed: of the tests.

    Raises:
        OptionError: there are no strengths, or one is 0 or not a finite number.
        DatasetError, ChatTemplateError: a pair cannot be rendered, or a side has no response; the model has not run.
        ActivationError: an activation or a prediction is not finite.
        VectorError, LayerError, ModelMismatchError: the vector does not fit the model.
    """
    levels = check_strengths(strengths)
    acting = sorted(acting_vectors(vector), key=lambda one: one.layer_index)
    injector = ActivationInjector(model, acting)
    chat = ChatTokenizer.of(tokenizer, template_options)
    dataset = as_dataset(contrast_pairs)
    pairs = [render_pair(chat, pair, place=f"pair {number}") for number, pair in enumerate(dataset)]
    check_scorable(sides_of(pairs), side_name)
    (detection,) = detection_auroc(model, chat, dataset, acting[-1])
    coherence, knowledge = CoherenceProbe(model, chat), CapabilityProbe(model, chat, seed=seed)
    before = pair_propensities(model, pairs).tolist()

    def measure(strength: float, refusal: RefusalMetrics | None) -> StrengthEvaluation:
        _LOGGER.info("measuring at strength %g", strength)
        injector.strength = strength
        with injector:
            after = pair_propensities(model, pairs).tolist()
            cost, capability = coherence.measure(), knowledge.measure()
        wrong = sum((one - other) * strength < 0 for one, other in zip(after, before, strict=True))
        effect = compare_paired(before, after, seed=seed)
        return StrengthEvaluation(strength, effect, wrong / len(pairs), cost, capability, refusal)

    refusals: list[RefusalMetrics | None] = [None] * len(levels)
    if refusal_prompts is not None:
        harmful, benign = (list_of("each item of refusal_prompts", prompts) for prompts in refusal_prompts)
        asked = [*harmful, *benign]
        answered = measure_strengths(model, chat, acting, asked, levels, is_refusal, sampling, show_progress=False)
        refusals = [refusal_metrics(one, harmful, benign) for one in answered]
    measured = tuple(map(measure, levels, refusals))
    layers = tuple(one.layer_index for one in acting)
    return VectorEvaluation(
        dataset.behavior, layers[-1], layers, len(pairs), detection, coherence.unsteered, measured, seed
    )

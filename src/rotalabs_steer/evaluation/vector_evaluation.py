"""Everything that can be measured of a vector without a judge, in one record."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rotalabs_steer.datasets.pairs import as_dataset
from rotalabs_steer.datasets.rendering import render_pair
from rotalabs_steer.errors import OptionError
from rotalabs_steer.evaluation.capability import CapabilityCheck, CapabilityProbe
from rotalabs_steer.evaluation.coherence import CoherenceCost, CoherenceProbe
from rotalabs_steer.evaluation.detection import Detection, detection_auroc
from rotalabs_steer.evaluation.propensity import PairScorer
from rotalabs_steer.evaluation.refusal_rates import evaluate_refusal
from rotalabs_steer.extraction.pair_texts import check_scorable, side_name, sides_of
from rotalabs_steer.injection import ActivationInjector
from rotalabs_steer.intervals import PairedComparison, compare_paired

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import nn

    from rotalabs_steer.datasets.pairs import ContrastPair, ContrastPairDataset
    from rotalabs_steer.evaluation.answers import Sampling
    from rotalabs_steer.evaluation.metrics import RefusalMetrics
    from rotalabs_steer.vectors import SteeringVector


@dataclass(frozen=True)
class StrengthEvaluation:
    """One strength against the unsteered model.

    Attributes:
        effect: change of the pairs' log-odds, nats per token, with its interval and test.
        wrong_way: share of pairs whose log-odds change against the sign of the strength.
        cost: on neutral text.
        capability: accuracy on questions.
        refusal: rates on harmful and harmless prompts; None where they were not asked for.
    """

    strength: float
    effect: PairedComparison
    wrong_way: float
    cost: CoherenceCost
    capability: CapabilityCheck
    refusal: RefusalMetrics | None = None


@dataclass(frozen=True)
class VectorEvaluation:
    """A vector on pairs that did not make it.

    Attributes:
        unsteered: cost record of the unsteered model: KL 0 and the perplexity to compare with.
    """

    behavior: str
    layer_index: int
    pairs: int
    detection: Detection
    unsteered: CoherenceCost
    strengths: tuple[StrengthEvaluation, ...]
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON-like values."""
        return asdict(self)


def evaluate_vector(
    model: nn.Module,
    tokenizer: Any,
    vector: SteeringVector,
    contrast_pairs: ContrastPairDataset | Iterable[ContrastPair | Mapping[str, Any]],
    strengths: Sequence[float] = (-1.0, 1.0),
    *,
    refusal_prompts: tuple[Sequence[str], Sequence[str]] | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
) -> VectorEvaluation:
    """Effect, cost, capability and detection of a vector.

    Args:
        contrast_pairs: none that made the vector.
        refusal_prompts: harmful and harmless prompts, to be answered at every strength.
        seed: of tests.

    Raises:
        OptionError: there are no strengths, or one is 0 or no number.
        DatasetError, ChatTemplateError: a pair cannot be rendered, or a side has no response; the model has not run.
        ActivationError: an activation or a prediction is not finite.
        VectorError, LayerError, ModelMismatchError: the vector does not fit the model.
    """
    if not strengths or 0.0 in strengths:
        raise OptionError(f"Strengths {list(strengths)} cannot be compared with 0: give at least one, and not 0.")
    injector = ActivationInjector(model, vector)
    for strength in strengths:
        injector.strength = strength  # a strength that cannot be is refused before anything is measured
    dataset = as_dataset(contrast_pairs)
    pairs = [render_pair(tokenizer, pair, place=f"pair {number}") for number, pair in enumerate(dataset)]
    check_scorable(sides_of(pairs), side_name)
    (detection,) = detection_auroc(model, tokenizer, dataset, vector)
    coherence, knowledge = CoherenceProbe(model, tokenizer), CapabilityProbe(model, tokenizer, seed=seed)
    scorer = PairScorer(model, pairs)
    before = scorer.propensities().tolist()

    def measure(strength: float) -> StrengthEvaluation:
        injector.strength = strength
        with injector:
            after = scorer.propensities().tolist()
            cost, capability = coherence.measure(), knowledge.measure()
        wrong = sum((one - other) * strength < 0 for one, other in zip(after, before, strict=True))
        refusal = None
        if refusal_prompts is not None:
            refusal = evaluate_refusal(
                model, tokenizer, *refusal_prompts, injector=injector, show_progress=False, sampling=sampling
            )
        return StrengthEvaluation(
            strength,
            compare_paired(before, after, seed=seed),
            wrong / len(pairs),
            cost,
            capability,
            refusal,
        )

    measured = tuple(measure(strength) for strength in strengths)
    return VectorEvaluation(
        dataset.behavior, vector.layer_index, len(pairs), detection, coherence.unsteered, measured, seed
    )

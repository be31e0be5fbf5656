"""Extra measurements for the report that need the model: capability, token projections and detection."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rotalabs_steer.chat.tokenizer import ChatTokenizer
from rotalabs_steer.errors import OptionError
from rotalabs_steer.files.records import from_json, read_record, to_json, write_record
from rotalabs_steer.measures.capability import CapabilityCheck, capability_check
from rotalabs_steer.measures.detection import Detection, detection_auroc, project
from rotalabs_steer.measures.projected_text import ProjectedText  # noqa: TC001 - a record's hints are read at run time
from rotalabs_steer.steering.injection import ActivationInjector

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping

    from torch import nn

    from rotalabs_steer.datasets.pairs import ContrastPair, ContrastPairDataset
    from rotalabs_steer.tuning.result import TunedSteering

EVIDENCE_FILE = "evidence.json"
_PROMPTS_PROJECTED = 3


@dataclass(frozen=True, eq=False)
class ProjectedAnswers:
    """Answers at one strength, with the projections of their tokens."""

    strength: float
    texts: tuple[ProjectedText, ...]


@dataclass(frozen=True, eq=False)
class Evidence:
    """Measurements of the chosen layer's vector.

    Attributes:
        capability: at strength 1.
        projected: the first answers of the tuning at each strength, as the unsteered model reads them.
        detection: of the pairs that were given; None without pairs.

    Raises:
        OptionError: there are no projected answers at −1, 0 or 1.
    """

    capability: CapabilityCheck
    projected: tuple[ProjectedAnswers, ...]
    detection: Detection | None = None

    def __post_init__(self) -> None:
        strengths = [row.strength for row in self.projected]
        if not {-1.0, 0.0, 1.0} <= set(strengths):
            raise OptionError(f"Evidence needs projected answers at strengths −1, 0 and 1; these are at {strengths}.")

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes `evidence.json` beside the tuning, atomically."""
        write_record(Path(directory) / EVIDENCE_FILE, to_json(self))

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Evidence | None:
        """Reads what `save` wrote; None where there is none.

        Raises:
            FileFormatError: the file is something else.
        """
        path = Path(directory) / EVIDENCE_FILE
        if not path.exists():
            return None
        evidence: Evidence = from_json(cls, read_record(path), f"{path} is not the evidence of a tuning, delete it")
        return evidence


def gather_evidence(
    model: nn.Module,
    tokenizer: Any,
    tuned: TunedSteering,
    pairs: ContrastPairDataset | Iterable[ContrastPair | Mapping[str, Any]] | None = None,
) -> Evidence:
    """Measures what a report of this tuning shows besides, with the template options of the tuning.

    Args:
        pairs: to detect the behaviour in; none that made the vectors or chose between them.

    Raises:
        VectorError, LayerError, ModelMismatchError: it was another model that was tuned.
    """
    options = tuned.provenance.get("options", {}).get("template_options")
    tokenizer = ChatTokenizer.of(tokenizer, options)
    vector = tuned.vectors[tuned.layer_index]
    capability = capability_check(model, tokenizer, injector=ActivationInjector(model, vector))
    answers = tuned.answers
    asked = answers.prompts[:_PROMPTS_PROJECTED]
    projected = []
    for strength, texts in answers.texts.items():
        told = [(prompt, text) for prompt, text in zip(asked, texts, strict=False) if text]
        seen = project(model, tokenizer, [text for _, text in told], vector, prompts=[prompt for prompt, _ in told])
        projected.append(ProjectedAnswers(strength, tuple(seen)))
    detection = None if pairs is None else detection_auroc(model, tokenizer, pairs, vector)[0]
    return Evidence(capability, tuple(projected), detection)

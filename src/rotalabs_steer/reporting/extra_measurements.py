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
        capability: accuracy on questions at strength 1, against the unsteered model.
        projected: the first answers of the tuning at each strength, as the unsteered model reads them.
        detection: how well the vector tells the sides of given pairs apart; None without pairs.

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
        """Reads what `save` wrote; None where there is no such file.

        Raises:
            FileFormatError: the file does not hold evidence.
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
    """Measures what the report shows beside the tuning, with the chat template options of the tuning.

    Args:
        pairs: pairs to detect the behaviour in, none of which made the vectors or chose between them.

    Raises:
        VectorError, LayerError, ModelMismatchError: another model was tuned.
    """
    chat = ChatTokenizer.of(tokenizer, tuned.provenance.get("options", {}).get("template_options"))
    vector = tuned.vectors[tuned.layer_index]
    capability = capability_check(model, chat, injector=ActivationInjector(model, vector))
    prompts = tuned.answers.prompts[:_PROMPTS_PROJECTED]
    projected = []
    for strength, texts in tuned.answers.texts.items():
        answered = [(prompt, text) for prompt, text in zip(prompts, texts, strict=False) if text]
        seen = project(model, chat, [text for _, text in answered], vector, prompts=[prompt for prompt, _ in answered])
        projected.append(ProjectedAnswers(strength, tuple(seen)))
    detection = None if pairs is None else detection_auroc(model, chat, pairs, vector)[0]
    return Evidence(capability, tuple(projected), detection)

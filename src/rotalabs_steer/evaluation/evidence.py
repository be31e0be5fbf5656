"""What a report says of a tuning beyond its own record, and what takes the model to find out."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rotalabs_steer.datasets.chat_tokenizer import ChatTokenizer
from rotalabs_steer.errors import FileFormatError
from rotalabs_steer.evaluation.capability import CapabilityCheck, capability_check
from rotalabs_steer.evaluation.detection import Detection, detection_auroc, project
from rotalabs_steer.evaluation.projected_text import ProjectedText
from rotalabs_steer.files.atomic import write_atomically
from rotalabs_steer.files.reading import MAX_JSON_BYTES, parse_json_object, read_bytes
from rotalabs_steer.injection import ActivationInjector
from rotalabs_steer.intervals import Estimate, PairedComparison

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping

    from torch import nn

    from rotalabs_steer.datasets.pairs import ContrastPair, ContrastPairDataset
    from rotalabs_steer.evaluation.tuned import TunedSteering

EVIDENCE_FILE = "evidence.json"
_PROMPTS_PROJECTED = 3


@dataclass(frozen=True, eq=False)
class Evidence:
    """Measurements of the chosen layer's vector.

    Attributes:
        capability: at strength 1.
        projected: by strength, the first answers of the tuning as the unsteered model reads them.
        detection: of the pairs that were given; None without pairs.
    """

    capability: CapabilityCheck
    projected: Mapping[float, tuple[ProjectedText, ...]]
    detection: Detection | None = None

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes `evidence.json` beside the tuning, atomically."""
        text = json.dumps(self.to_record(), indent=1, ensure_ascii=False, allow_nan=False)
        write_atomically(Path(directory) / EVIDENCE_FILE, (text + "\n").encode())

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Evidence | None:
        """Reads what `save` wrote; None where there is none.

        Raises:
            FileFormatError: the file is something else.
        """
        path = Path(directory) / EVIDENCE_FILE
        if not path.exists():
            return None
        record = parse_json_object(read_bytes(path, MAX_JSON_BYTES), path)
        try:
            return cls._from_record(record)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FileFormatError(f"{path} is not the evidence of a tuning: {error!r:.200} Delete it.") from error

    def to_record(self) -> dict[str, Any]:
        """The evidence as JSON has it."""
        texts = [
            {"strength": strength, "texts": [_text_record(text) for text in texts]}
            for strength, texts in self.projected.items()
        ]
        return {
            "capability": dataclasses.asdict(self.capability),
            "projected": texts,
            "detection": None if self.detection is None else dataclasses.asdict(self.detection),
        }

    @classmethod
    def _from_record(cls, record: Mapping[str, Any]) -> Evidence:
        check, detection = record["capability"], record["detection"]
        capability = CapabilityCheck(
            Estimate(**check["accuracy"]),
            tuple(check["log_odds"]),
            Estimate(**check["unsteered"]),
            PairedComparison(**{**check["change"], "difference": Estimate(**check["change"]["difference"])}),
        )
        projected = {row["strength"]: tuple(map(_text_from, row["texts"])) for row in record["projected"]}
        if detection is not None:
            estimates = {name: Estimate(**detection[name]) for name in ("auroc", "paired")}
            scores = {name: tuple(detection[name]) for name in ("positive_scores", "negative_scores")}
            detection = Detection(**{**detection, **estimates, **scores})
        return cls(capability, projected, detection)


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
    projected = {}
    for strength, texts in answers.texts.items():
        told = [(prompt, text) for prompt, text in zip(asked, texts, strict=False) if text]
        projected[strength] = tuple(
            project(model, tokenizer, [text for _, text in told], vector, prompts=[prompt for prompt, _ in told])
        )
    detection = None if pairs is None else detection_auroc(model, tokenizer, pairs, vector)[0]
    return Evidence(capability, projected, detection)


def _text_record(text: ProjectedText) -> dict[str, Any]:
    return {
        "text": text.text,
        "tokens": text.tokens,
        "offsets": text.offsets,
        "scores": text.scores.tolist(),
        "text_scores": text.text_scores.tolist(),
    }


def _text_from(record: Mapping[str, Any]) -> ProjectedText:
    offsets = tuple((low, high) for low, high in record["offsets"])
    scores, text_scores = torch.tensor(record["scores"]), torch.tensor(record["text_scores"])
    return ProjectedText(record["text"], tuple(record["tokens"]), offsets, scores, text_scores)

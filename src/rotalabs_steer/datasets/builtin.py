"""The behaviours that come with the package: JSONL files under `datasets/data/`, in one folder per behaviour."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from rotalabs_steer.datasets.pairs import (
    ContrastPairDataset,
    EvaluationDataset,
    parse_example,
    parse_pair,
)
from rotalabs_steer.datasets.splits import SPLITS
from rotalabs_steer.errors import OptionError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable


def behavior_names() -> list[str]:
    """Names of the built-in behaviours."""
    return sorted(folder.name for folder in _data().iterdir() if folder.is_dir())


def load_behavior(name: str, split: str | None = None) -> ContrastPairDataset:
    """The contrast pairs of a built-in behaviour.

    Args:
        split: "train", "validation" or "test" (no topic is in two of them); None for all pairs.

    Raises:
        OptionError: unknown behaviour or split.
    """
    if split is not None and split not in SPLITS:
        raise OptionError(f"Unknown split {split!r}. Use one of: {', '.join(SPLITS)}, or None for all pairs.")
    rows = [row for row in _read_jsonl(_folder(name) / "pairs.jsonl") if split in (None, row["split"])]
    pairs = [parse_pair({**row, "metadata": {"split": row["split"]}}, f"{name}/pairs.jsonl") for row in rows]
    return ContrastPairDataset(name, pairs, describe_behavior(name)["positive"])


def load_evaluation(name: str) -> EvaluationDataset:
    """The evaluation prompts of a built-in behaviour; half of the answers should not show it."""
    rows = _read_jsonl(_folder(name) / "evaluation.jsonl")
    examples = [parse_example(row, f"{name}/evaluation.jsonl") for row in rows]
    return EvaluationDataset(name, examples, describe_behavior(name)["positive"])


def describe_behavior(name: str) -> dict[str, Any]:
    """Title, what each side does, marker words, licence and source of a built-in behaviour."""
    description: dict[str, Any] = json.loads((_folder(name) / "behavior.json").read_text("utf-8"))
    return description


def load_refusal_pairs(split: str | None = None) -> ContrastPairDataset:
    """Declining a request against going along with it, on harmful and harmless prompts."""
    return load_behavior("refusal", split)


def load_formality_pairs(split: str | None = None) -> ContrastPairDataset:
    """A formal register against a casual one."""
    return load_behavior("formality", split)


def load_uncertainty_pairs(split: str | None = None) -> ContrastPairDataset:
    """Saying how sure one is against flat certainty."""
    return load_behavior("uncertainty", split)


def load_tool_restraint_pairs(split: str | None = None) -> ContrastPairDataset:
    """Calling a tool only when the request needs one, against calls that it does not need."""
    return load_behavior("tool_restraint", split)


def load_hierarchy_pairs(split: str | None = None) -> ContrastPairDataset:
    """Keeping to the system message against following a user who contradicts it."""
    return load_behavior("instruction_hierarchy", split)


def load_conciseness_pairs(split: str | None = None) -> ContrastPairDataset:
    """A brief answer against a padded one."""
    return load_behavior("conciseness", split)


def load_creativity_pairs(split: str | None = None) -> ContrastPairDataset:
    """An imaginative answer against a conventional one."""
    return load_behavior("creativity", split)


def load_assertiveness_pairs(split: str | None = None) -> ContrastPairDataset:
    """Firm, direct advice against the same advice given timidly."""
    return load_behavior("assertiveness", split)


def load_humor_pairs(split: str | None = None) -> ContrastPairDataset:
    """A playful answer against a serious one."""
    return load_behavior("humor", split)


def load_empathy_pairs(split: str | None = None) -> ContrastPairDataset:
    """A warm answer that acknowledges feelings against a matter-of-fact one."""
    return load_behavior("empathy", split)


def load_technical_depth_pairs(split: str | None = None) -> ContrastPairDataset:
    """An expert's answer against one in everyday words."""
    return load_behavior("technical_depth", split)


def _data() -> Traversable:
    return files("rotalabs_steer.datasets").joinpath("data")


def _folder(name: str) -> Traversable:
    if name not in behavior_names():
        raise OptionError(f"Unknown behaviour {name!r}. Built in are: {', '.join(behavior_names())}.")
    return _data() / name


def _read_jsonl(path: Traversable) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
